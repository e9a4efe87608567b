"""Sizes by which a model cannot be split are refused before Ray starts; the numbers are of models that exist."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raylign.config import ModelConfig, parse_config
from raylign.controllers.checks import check_splits, check_stages, engine_fits, learner_fits
from raylign.errors import ConfigError, UserError
from raylign.models.description import Shape, shape
from raylign.pipeline.stages import build_graph

QWEN_05B = Shape(heads=14, kv_heads=2, layers=24, intermediate=4864)
LLAMA_70B = Shape(heads=64, kv_heads=8, layers=80, intermediate=28672)
ROOT = Path(__file__).parents[3]


def test_sizes_that_fit():
    assert [n for n in range(1, 65) if engine_fits(LLAMA_70B, n)] == [1, 2, 4, 8, 16, 32, 64]
    assert [n for n in range(1, 65) if learner_fits(LLAMA_70B, n)] == [1, 2, 4, 8]
    # 7 divides the 14 heads and not the 2 of keys and values; 14 divides no feed-forward of 4864.
    assert [n for n in range(1, 65) if engine_fits(QWEN_05B, n)] == [1, 2]


def model(folder: Path, **entries: object) -> str:
    folder.mkdir()
    tree = {
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "num_hidden_layers": 24,
        "intermediate_size": 4864,
        **entries,
    }
    (folder / "config.json").write_text(json.dumps(tree))
    return str(folder)


def config(folder: str, **sections: object):
    (Path(folder) / "rows.jsonl").write_text('{"prompt": "a"}\n')
    tree = {
        "name": "split",
        "output_dir": folder,
        "model": {"path": folder},
        "data": {"path": f"{folder}/rows.jsonl"},
        "reward": {"type": "function", "function": "len:len", "allow_code": True},
        "algorithm": {"name": "ppo"},
        **sections,
    }
    return parse_config(tree)


def test_the_line_names_place_heads_and_nearest_sizes(tmp_path):
    folder = model(tmp_path / "m")
    wrong = config(folder, rollout={"tensor_parallel": 4, "pipeline_parallel": 32})
    with pytest.raises(ConfigError) as caught:
        check_splits(wrong)
    assert caught.value.problems == [
        "rollout.tensor_parallel: 4 ranks cannot share evenly the 14 attention heads (2 of keys and values) and a "
        f"feed-forward of 4864 of {folder}; set 2",
        f"rollout.pipeline_parallel: 32 groups cannot share the 24 layers of {folder}; set at most 24",
    ]
    check_splits(config(folder, rollout={"tensor_parallel": 2, "pipeline_parallel": 24}))


def test_learner_and_critic_are_checked(tmp_path):
    policy = model(tmp_path / "m", num_attention_heads=12, num_key_value_heads=12, intermediate_size=48)
    critic = model(tmp_path / "critic")
    ranks = {"num_actors": 4}
    sections = {
        "learner": {"sharding": {"tensor_parallel": 4}},
        "placement": {"policy": ranks, "critic": ranks},
    }
    check_splits(config(policy, **sections))
    with pytest.raises(ConfigError) as caught:
        check_splits(config(policy, **sections, algorithm={"name": "ppo", "critic": {"path": critic}}))
    (problem,) = caught.value.problems
    assert problem.startswith("learner.sharding.tensor_parallel: 4 ranks cannot share evenly the 14 attention heads")


def test_sizes_below_and_above_are_named(tmp_path):
    folder = model(tmp_path / "m", num_attention_heads=64, num_key_value_heads=8, intermediate_size=28672)
    with pytest.raises(ConfigError, match=r"; set 4 or 8$"):
        check_splits(config(folder, rollout={"tensor_parallel": 6}))


def test_a_model_that_is_made_later_waits(tmp_path):
    """...until its path is known; and so do runs that split nothing, whose config.json is not even read."""
    folder = model(tmp_path / "m")
    split = {"rollout": {"tensor_parallel": 4}, "task": {"name": "exact"}}
    check_splits(config(folder, model={"path": "task:model"}, **split))
    check_splits(config(folder, model={"path": str(tmp_path / "none")}))


def test_needed_runs_are_checked_with_the_run(tmp_path):
    folder = model(tmp_path / "m")
    collect = config(
        folder, name="first", algorithm={"name": "collect", "keep": "best"}, rollout={"tensor_parallel": 4}
    )
    (tmp_path / "first.yaml").write_text(json.dumps(collect.model_dump(mode="json")))
    run = f"run:{tmp_path / 'first.yaml'}"
    sft = config(folder, data={"path": run}, algorithm={"name": "sft"}, reward=None)
    with pytest.raises(ConfigError, match=r"^rollout\.tensor_parallel: 4 ranks"):
        check_stages(build_graph(sft))


def test_shapes_under_other_names_and_none(tmp_path):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2", "n_head": 6, "n_layer": 3, "n_embd": 36}')
    assert shape(ModelConfig(path=str(tmp_path / "gpt2"))) == Shape(6, 6, 3, None)
    (tmp_path / "mamba").mkdir()
    (tmp_path / "mamba" / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match=r"^model\.path: .*mamba does not state a number of attention heads"):
        shape(ModelConfig(path=str(tmp_path / "mamba")))


def test_an_engine_has_a_gpu_for_each_of_its_ranks(tmp_path):
    folder = model(tmp_path / "m")

    def with_gpus(num_gpus: float, **rollout: int):
        return config(folder, rollout=rollout, placement={"rollout": {"num_gpus": num_gpus}})

    with pytest.raises(
        ConfigError, match=r"placement\.rollout\.num_gpus: 1 for an engine of rollout\.tensor_parallel 4"
    ):
        with_gpus(1, tensor_parallel=4)
    for fine in ((4, 2, 2), (0, 2, 1), (0.5, 1, 1)):  # on GPUs, on CPUs, two engines on one GPU
        with_gpus(fine[0], tensor_parallel=fine[1], pipeline_parallel=fine[2])


def test_a_run_is_refused_before_ray_starts(tmp_path):
    folder = model(tmp_path / "m")
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config(folder, rollout={"tensor_parallel": 4}).model_dump(mode="json")))
    code = (
        "import sys, ray; from raylign import load_config, run; from raylign.errors import ConfigError\n"
        "try: run(load_config(sys.argv[1]), quiet=True)\n"
        "except ConfigError as e: print(e, ray.is_initialized(), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("rollout.tensor_parallel: 4 ranks")
    assert done.stdout.strip().endswith("False False")
    assert not (Path(folder) / "split").exists()
