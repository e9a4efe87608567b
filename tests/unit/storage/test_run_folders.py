"""Where a run lives, and when an old run directory may be gone on with. No run here gets as far as Ray."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray

from raylign.actors.waiting import Stop
from raylign.config import RunConfig, parse_config
from raylign.controllers.context import RunOptions
from raylign.controllers.run import RunResult, run
from raylign.controllers.runner import Runner
from raylign.errors import Interrupted, UserError
from raylign.pipeline.stages import build_graph
from raylign.storage.outputs import fresh_folder, newest_folder
from raylign.storage.run_folder import RunFolder

SUMMARY = {"algorithm": "sft", "score_after": 1.5, "output": "model"}


@pytest.fixture
def config(tmp_path) -> RunConfig:
    (tmp_path / "rows.jsonl").write_text('{"text": "a good film"}\n')
    return parse_config(
        {
            "name": "mine",
            "output_dir": str(tmp_path / "runs"),
            "model": {"path": "some/model"},
            "data": {"path": str(tmp_path / "rows.jsonl")},
            "algorithm": {"name": "sft"},
        }
    )


def change(config: RunConfig, **sections: object) -> RunConfig:
    return parse_config(config.model_dump(mode="json") | sections)


def leave(config: RunConfig, name: str = "mine", finished: bool = True) -> Path:
    """A run directory as `run` leaves it."""
    folder = Path(config.output_dir) / name
    RunFolder(folder).write_configs(config, config, build_graph(config).content)
    if finished:
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
    return folder


def test_a_new_run_takes_the_next_free_number(tmp_path):
    base = tmp_path / "mine"
    assert (newest_folder(base), fresh_folder(base)) == (None, base)
    for name in ("mine", "mine-2", "mine-10", "mine-3", "mine-old", "mine2", "other-50"):
        (tmp_path / name).mkdir()
    assert newest_folder(base) == tmp_path / "mine-10"
    assert fresh_folder(base) == tmp_path / "mine-11"
    assert fresh_folder(tmp_path / "other") == tmp_path / "other-51"
    assert fresh_folder(tmp_path / "mine-old") == tmp_path / "mine-old-2"


def test_a_finished_run_is_returned_as_it_is(config):
    leave(config)
    newest = leave(config, "mine-2")
    before = {path: path.stat().st_mtime_ns for path in newest.iterdir()}
    assert run(config, resume=True) == RunResult(newest, SUMMARY)
    assert {path: path.stat().st_mtime_ns for path in newest.iterdir()} == before
    assert RunResult(newest, SUMMARY).output == newest / "model"


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"seed": 4}, "seed (0 -> 4): differs from the run in "),
        (
            {"algorithm": {"name": "sft", "optimizer": {"learning_rate": 0.5}}},
            "algorithm.optimizer.learning_rate (2e-05 -> 0.5): differs from the run in ",
        ),
        ({"rollout": {"engine": "vllm"}}, "rollout.engine ('auto' -> 'vllm'): differs from the run in "),
    ],
)
def test_another_config_is_not_gone_on_with(config, sections, told, finished):
    folder = leave(config, finished=finished)
    with pytest.raises(UserError) as caught:
        run(change(config, **sections), resume=True)
    assert str(caught.value).startswith(f"{told}{folder}; resume with the same config, or leave out --resume")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"placement": {"policy": {"num_actors": 2}}},
        {"limits": {"save": 9.0}},
        {"checkpoint": {"every_steps": 3}},
        {"tracking": {"tensorboard": True}},
    ],
)
def test_what_only_says_how_to_run_may_change(config, sections):
    folder = leave(config)
    assert change(config, **sections) != config
    assert run(change(config, **sections), resume=True).folder == folder


def test_other_data_under_the_same_path_is_not_gone_on_with(config):
    folder = leave(config, finished=False)
    Path(config.data.path).write_text('{"text": "another film"}\n')
    with pytest.raises(UserError) as caught:
        run(config, resume=True)
    assert str(caught.value).startswith(
        f"data.path: {config.data.path} is not what it was when the run in {folder} began"
    )


def test_without_resume_an_old_run_is_not_looked_at(config, monkeypatch):
    """The model does not exist, which is found only after the folder was chosen."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it is asked for again and again
    folder = leave(config)
    before = sorted(Path(config.output_dir).rglob("*"))
    with pytest.raises(UserError, match=r"^model\.\w+: "):
        run(change(config, seed=4))
    assert sorted(folder.parent.rglob("*")) == before
    assert not ray.is_initialized()


def test_a_stop_before_ray_starts_nothing():
    stop = Stop()
    stop.request()
    with ExitStack() as session, pytest.raises(Interrupted, match="before anything was started"):
        Runner(session, stop, RunOptions(quiet=True))._ensure_ray()
    assert not ray.is_initialized()


@pytest.mark.parametrize("finished", [True, False])
def test_a_config_that_is_not_read_any_more_is_refused_in_one_line(config, finished):
    folder = leave(config, finished=finished)
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("max_failures:", "most_failures:"))
    with pytest.raises(UserError) as caught:
        run(config, resume=True)
    message = str(caught.value)
    assert message.startswith(f"{file}:")
    assert "limits.most_failures" in message
    assert message.endswith("continue it with that raylign, or start a new run")
    assert "\n" not in message
