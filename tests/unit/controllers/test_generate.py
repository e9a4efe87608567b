"""`raylign generate`: which run it makes of a config, what it refuses before anything starts, and the file it writes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import ray
import yaml

from raylign.cli import main
from raylign.config import CollectConfig, DataConfig, RunConfig
from raylign.config.generate import generate_config
from raylign.controllers import generate as module
from raylign.controllers.run import RunResult
from raylign.data import read_rows
from raylign.data.export import check_target, export_rows
from raylign.errors import UserError

PPO = {
    "name": "mine",
    "task": {"name": "sentiment"},
    "model": {"path": "task:model"},
    "data": {"path": "task:prompts"},
    "reward": {"type": "task"},
    "reference": {"path": "some/model"},
    "evaluation": {"data": {"path": "task:eval_prompts"}},
    "algorithm": {"name": "ppo", "prompts_per_step": 16, "steps": 3, "critic": {"path": "some/critic"}},
}
COLLECT = PPO | {"algorithm": {"name": "collect", "rows": 30, "samples_per_prompt": 4, "label": "best"}}


@pytest.fixture
def write(tmp_path):
    def write(tree: dict) -> Path:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        return file

    return write


def settings(config: RunConfig) -> tuple[object, ...]:
    algorithm = config.algorithm
    assert isinstance(algorithm, CollectConfig)
    return algorithm.samples_per_prompt, algorithm.keep, algorithm.rows, algorithm.prompts_per_step, algorithm.label


def test_any_algorithm_becomes_collect_and_the_rest_stays(write):
    config = generate_config(write(PPO))
    assert settings(config) == (8, "best", None, 16, "bradley_terry")
    assert (config.name, config.evaluation, config.reference) == ("mine-generate", None, None)
    assert config.sources() == [("model.path", "task:model"), ("data.path", "task:prompts")]
    assert settings(generate_config(write(PPO), samples=2, keep="pairs", rows=7)) == (
        2,
        "pairs",
        7,
        16,
        "bradley_terry",
    )
    without = {key: value for key, value in PPO.items() if key != "algorithm"}
    for tree in (without, PPO | {"algorithm": {"name": "dpo", "beta": 0.5}}):
        assert settings(generate_config(write(tree))) == (8, "best", None, 256, "bradley_terry")


def test_a_collect_config_keeps_what_is_not_given(write):
    assert settings(generate_config(write(COLLECT))) == (4, "pairs", 30, 256, "best")
    assert settings(generate_config(write(COLLECT), keep="all")) == (4, "all", 30, 256, "best")
    assert settings(generate_config(write(COLLECT), samples=6, rows=9)) == (6, "pairs", 9, 256, "best")


def test_overrides_are_of_the_run_that_is_made(write):
    config = generate_config(
        write(PPO), ["name=other", "rollout.sampling.top_p=0.9", "algorithm.label=best", "algorithm.rows=5"], rows=9
    )
    assert (config.name, config.rollout.sampling.top_p) == ("other", 0.9)
    assert settings(config) == (8, "best", 5, 16, "best")


def without_reward(tree: dict) -> dict:
    return {key: value for key, value in tree.items() if key != "reward"}


@pytest.mark.parametrize(
    ("tree", "options", "line"),
    [
        (
            without_reward(PPO),
            [],
            "run.yaml:1: reward: collect scores its samples; add a reward section, e.g. reward: {type: task}",
        ),
        (
            PPO,
            ["--keep", "bset"],
            "--keep: algorithm.keep: input should be 'pairs', 'best' or 'all', not 'bset'",
        ),
        (
            PPO,
            ["--samples", "3", "--keep", "pairs"],
            "generate: algorithm: samples_per_prompt: 3 does not make pairs; set an even number",
        ),
        (
            PPO,
            ["--samples", "0"],
            "--samples: algorithm.samples_per_prompt: input should be greater than or equal to 1, not 0",
        ),
        (PPO, ["--rows", "0"], "--rows: algorithm.rows: input should be greater than or equal to 1, not 0"),
        (PPO, ["algorithm.steps=3"], "override 'algorithm.steps=3': algorithm.steps: unknown key; known: .*"),
        (PPO, ["algorithm.name=ppo"], "override 'algorithm.name=ppo': generate always uses collect; leave it out, .*"),
        (PPO, ["algorithm={name: dpo}"], "override 'algorithm={name: dpo}': generate always uses collect; .*"),
        (PPO, ["--out", "rows.csv"], ".*/rows.csv: cannot write .csv; name a .jsonl or .parquet"),
        (
            PPO,
            ["--out", "taken.jsonl"],
            ".*/taken.jsonl: the file exists and is not overwritten; .*, or name another file",
        ),
        (PPO, ["--out", "taken.jsonl", "--resume"], ".*/taken.jsonl: the file exists and is not overwritten; .*"),
        (
            PPO,
            ["--out", "taken.jsonl/x.jsonl"],
            ".*/x.jsonl: cannot be written, because .* is a file, not a folder; name .*",
        ),
        (PPO | {"data": {"path": "texts.jsonl"}}, [], r"texts.jsonl:1: no column 'prompt' \(found: text\); prompts .*"),
        (PPO | {"data": {"path": "none.jsonl"}}, [], "data.path: no such file or folder: none.jsonl .*"),
    ],
)
def test_a_mistake_costs_a_line_and_starts_nothing(tmp_path, monkeypatch, capfd, write, tree, options, line):
    (tmp_path / "taken.jsonl").write_text('{"prompt": "mine"}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "a good film"}\n')
    write(tree)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["generate", "run.yaml", *options])
    assert ended.value.code == 2
    out, err = capfd.readouterr()
    (told,) = err.splitlines()
    assert re.fullmatch(line, told.removeprefix("raylign: "))
    assert out == ""
    assert not ray.is_initialized()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "taken.jsonl", "texts.jsonl"]


# --- the file

ROWS = [{"prompt": f"the film {i}", "completion": " good é", "score": i / 3, "finished": i % 2 == 0} for i in range(5)]


@pytest.fixture
def source(tmp_path) -> Path:
    file = tmp_path / "run" / "completions.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    return file


def rows_of(file: Path) -> list[dict]:
    return read_rows(DataConfig(path=str(file))).rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_are_written_whole_into_new_folders_and_once(tmp_path, source, name):
    target = tmp_path / "a" / "b" / name
    check_target(target)
    assert not target.parent.exists()
    export_rows(source, target)
    assert rows_of(target) == ROWS
    assert [path.name for path in target.parent.iterdir()] == [name]
    before = target.stat()
    export_rows(source, target)
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    source.write_text('{"prompt": "else"}\n')
    with pytest.raises(UserError, match="the file exists and is not overwritten"):
        export_rows(source, target)
    assert rows_of(target) == ROWS


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(UserError, match=r"rows\.jsonl: is a folder; name a file"):
        check_target(tmp_path / "rows.jsonl", may_exist=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="locked is not writable; name another place"):
        check_target(tmp_path / "locked" / "new" / "rows.jsonl")


def test_a_write_that_fails_leaves_nothing_and_says_where_the_rows_are(tmp_path, source):
    (tmp_path / "blocked").write_text("")
    with pytest.raises(
        UserError, match=rf"blocked/rows\.jsonl: .*; the rows are in {re.escape(str(source))}: copy them"
    ):
        export_rows(source, tmp_path / "blocked" / "rows.jsonl")


def test_a_finished_run_gives_its_file_again(write, tmp_path, source, monkeypatch):
    """`--resume` of a command that came to its end: what it wrote is accepted, another file is not."""
    folder = tmp_path / "runs" / "mine-generate"
    folder.mkdir(parents=True)
    config = generate_config(write(PPO), [f"output_dir={tmp_path / 'runs'}"])
    result = RunResult(source.parent, {"output": source.name})
    monkeypatch.setattr(module, "run", lambda *_, **__: result)  # whether a run goes on is test_run_folders' question
    out = tmp_path / "rows.jsonl"
    assert module.generate(config, out=out) is result
    with pytest.raises(UserError, match="the file exists"):
        module.generate(config, out=out, resume=True)
    (folder / "summary.json").write_text("{}")
    module.generate(config, out=out, resume=True)
    assert rows_of(out) == ROWS
    with pytest.raises(UserError, match="the file exists"):
        module.generate(config, out=out)
    out.write_text('{"prompt": "mine"}\n')
    with pytest.raises(UserError, match="the file exists"):
        module.generate(config, out=out, resume=True)


@pytest.mark.parametrize(
    ("settings", "num_prompts", "steps"),
    [
        ({"rows": 10, "prompts_per_step": 4, "keep": "best"}, 100, 3),
        ({"rows": 10, "prompts_per_step": 4, "keep": "best"}, 6, 3),
        ({"rows": 10, "prompts_per_step": 99, "keep": "best"}, 4, 3),
        ({"rows": 10, "prompts_per_step": 2, "keep": "all", "samples_per_prompt": 4}, 100, 2),
        ({"rows": None, "prompts_per_step": 4}, 10, 3),
        ({"rows": None, "prompts_per_step": 99}, 10, 1),
    ],
)
def test_steps_of_a_collect_run(settings, num_prompts, steps):
    algorithm = CollectConfig.model_validate({"name": "collect"} | settings)
    assert algorithm.num_steps(num_prompts) == steps
