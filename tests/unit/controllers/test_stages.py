"""Which runs a run needs, and when two of them are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raylign.config import RunConfig, load_config
from raylign.config.graph import TASK_DATA, check_graph, upstream_configs
from raylign.errors import ConfigError, UserError
from raylign.pipeline.stages import Stage, build_graph, resolve
from raylign.tasks import TaskFiles

TASK = {
    "name": "sentiment",
    "num_reviews": 100,
    "num_prompts": 10,
    "num_eval_prompts": 10,
    "hidden_size": 32,
    "num_layers": 1,
}
SFT = {"algorithm": {"name": "sft"}, "model": {"path": "task:model"}, "data": {"path": "task:corpus"}}
COLLECT = {
    "algorithm": {"name": "collect"},
    "model": {"path": "run:sft.yaml"},
    "data": {"path": "task:prompts"},
    "reward": {"type": "task"},
}
REWARD_MODEL = {
    "algorithm": {"name": "reward_model"},
    "model": {"path": "run:sft.yaml"},
    "data": {"path": "run:collect.yaml"},
}
DPO = {**REWARD_MODEL, "algorithm": {"name": "dpo"}}
PPO = {
    "algorithm": {"name": "ppo"},
    "model": {"path": "run:sft.yaml"},
    "data": {"path": "task:prompts"},
    "reward": {"type": "model", "path": "run:reward_model.yaml"},
}


@pytest.fixture
def write(tmp_path):
    """Write configs as name=tree; returns the last one, loaded. The five of a whole graph are there already."""

    def write(**configs: dict) -> RunConfig:
        path = tmp_path
        for name, tree in configs.items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(yaml.safe_dump({"name": name, "task": TASK, "output_dir": str(tmp_path / "runs"), **tree}))
        return load_config(path)

    write(sft=SFT, collect=COLLECT, reward_model=REWARD_MODEL, dpo=DPO, ppo=PPO)
    return write


def key(config: RunConfig) -> str:
    return build_graph(config).key


def test_needed_runs_are_named_in_an_order_that_can_be_executed(write):
    assert check_graph(write(ppo=PPO)) == ["sft", "collect", "reward_model"]
    assert check_graph(write(dpo=DPO)) == ["sft", "collect"]
    assert check_graph(write(sft=SFT)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another"},
        {"output_dir": "elsewhere"},
        {"tracking": {"tensorboard": True}},
        {"limits": {"save": 7.0}},
        {"checkpoint": {"keep": 9}},
        {"placement": {"policy": {"num_cpus": 1.0}}},
    ],
)
def test_what_does_not_decide_the_outcome_leaves_the_hash(write, change):
    assert key(write(one=SFT | change)) == key(write(two=SFT))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"algorithm": {"name": "sft", "optimizer": {"learning_rate": 3e-4}}},
        {"model": {"path": "task:model", "compute_dtype": "float32"}},
        {"task": TASK | {"seed": 1}},
        {"data": {"path": "task:corpus", "max_rows": 5}},
    ],
)
def test_what_decides_the_outcome_changes_the_hash(write, change):
    assert key(write(one=SFT | change)) != key(write(one=SFT))


def test_a_change_upstream_changes_the_hash_of_all_below(write):
    before = {name: key(write(**{name: tree})) for name, tree in (("dpo", DPO), ("ppo", PPO))}
    write(sft=SFT | {"limits": {"save": 5.0}})
    assert key(write(dpo=DPO)) == before["dpo"]
    write(sft=SFT | {"seed": 3})
    assert key(write(dpo=DPO)) != before["dpo"]
    assert key(write(ppo=PPO)) != before["ppo"]


def test_the_bytes_of_a_data_file_count_and_not_its_place(write, tmp_path):
    for name, text in (("a", '{"text": "x"}'), ("b", '{"text": "x"}'), ("c", '{"text": "y"}')):
        (tmp_path / f"{name}.jsonl").write_text(text)
    a, b, c = (key(write(one=SFT | {"data": {"path": str(tmp_path / f"{name}.jsonl")}})) for name in "abc")
    assert a == b != c


def test_the_files_of_a_folder_count(write, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(3 * 2**20))
    config = write(one=SFT | {"model": {"path": str(model)}})
    before = key(config)
    assert key(config) == before
    (model / "model.safetensors").write_bytes(bytes(3 * 2**20 - 1) + b"\1")
    assert key(config) != before


def test_the_code_of_a_reward_counts(write, tmp_path):
    code = tmp_path / "reward.py"
    code.write_text("def score(prompts, completions): ...")
    config = write(one=COLLECT | {"reward": {"type": "function", "function": f"{code}:score", "allow_code": True}})
    before = key(config)
    assert key(write(one=COLLECT | {"reward": {"type": "function", "function": f"{code}:other"}})) != before
    code.write_text("def score(prompts, completions): return []")
    assert key(config) != before


def test_an_upstream_run_takes_task_engine_and_folder_but_not_the_seed(write, tmp_path):
    task = TASK | {"seed": 5}
    top = write(top=PPO | {"task": task, "seed": 8, "rollout": {"engine": "transformers"}, "output_dir": "out"})
    (sft,) = (c for value, c in upstream_configs(top).items() if value.endswith("/sft.yaml"))
    assert (sft.task and sft.task.seed, sft.rollout.engine, sft.output_dir, sft.seed) == (5, "transformers", "out", 0)
    stage = build_graph(top)
    collect = stage.needs[f"run:{tmp_path / 'reward_model.yaml'}"].needs[f"run:{tmp_path / 'collect.yaml'}"]
    assert (collect.config.rollout.engine, collect.config.task and collect.config.task.seed) == ("transformers", 5)
    assert key(write(top=PPO | {"seed": 9})) != key(write(top=PPO))
    assert list(build_graph(write(top=PPO | {"seed": 9})).needs.values()) == list(
        build_graph(write(top=PPO)).needs.values()
    )
    # Nothing is handed to a run without a task, nor from one that leaves the engine open.
    write(sft=SFT | {"task": None, "model": {"path": "a/b"}, "data": {"path": "c/d"}, "rollout": {"engine": "vllm"}})
    sft = upstream_configs(write(top=DPO))[f"run:{tmp_path / 'sft.yaml'}"]
    assert (sft.task, sft.rollout.engine) == (None, "vllm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"data": {"path": "run:sft.yaml"}},
            "data.path: run:TMP/sft.yaml is a sft run; this key needs a dataset, from a col",
        ),
        (
            {"model": {"path": "run:collect.yaml"}},
            "model.path: run:TMP/collect.yaml is a collect run; this key needs a langu",
        ),
        (
            {"model": {"path": "run:reward_model.yaml"}},
            "model.path: run:TMP/reward_model.yaml is a reward_model run; this key needs a langu",
        ),
        (
            {"reward": {"type": "model", "path": "run:sft.yaml"}},
            "reward.path: run:TMP/sft.yaml is a sft run; this key needs",
        ),
        (
            {"data": {"path": "run:none.yaml"}},
            "TMP/none.yaml: cannot read the config: No such file or directory; check",
        ),
        (
            {"data": {"path": "task:nothing"}},
            "data.path: the task has no task:nothing for this; write task:corpus or t",
        ),
        ({"model": {"path": "task:corpus"}}, "model.path: the task has no task:corpus for this; write task:model"),
        ({"data": {"path": "task:model"}}, "data.path: the task has no task:model for this; write task:corpus or t"),
        (
            {"reward": {"type": "model", "path": "task:reward"}},
            "reward.path: task:reward is not a model; for the true rew",
        ),
        (
            {"model": {"path": "run:top.yaml"}},
            "model.path: run:TMP/top.yaml needs itself: run:TMP/top.yaml -> run:TMP/t",
        ),
    ],
)
def test_a_wrong_edge_is_refused_with_its_place(write, tmp_path, change, message):
    config = write(top=PPO | change)
    for check in (check_graph, build_graph):
        with pytest.raises(ConfigError) as caught:
            check(config)
        (line,) = caught.value.problems
        assert line.replace(str(tmp_path), "TMP").startswith(message)


def test_a_long_circle_is_refused(write):
    write(sft=SFT | {"model": {"path": "run:dpo.yaml"}})
    with pytest.raises(ConfigError, match=r"needs itself: .*sft\.yaml -> .*dpo\.yaml -> .*sft\.yaml; remove the cycle"):
        check_graph(write(dpo=DPO))


def test_a_critic_may_start_from_a_reward_model(write):
    critic = {"name": "ppo", "critic": {"path": "run:reward_model.yaml"}}
    assert check_graph(write(top=PPO | {"algorithm": critic})) == ["sft", "collect", "reward_model"]


@pytest.mark.parametrize("path", ["rows.jsonl", "./folder", "/nowhere/rows.parquet", "~/nowhere"])
def test_a_missing_file_of_any_needed_run_is_told_before_the_first_one_starts(write, path):
    write(sft=SFT | {"data": {"path": path}})
    with pytest.raises(UserError) as caught:
        build_graph(write(dpo=DPO))
    assert str(caught.value).startswith(f"data.path: no such file or folder: {path} (run sft); check the path")


def test_what_the_graph_allows_the_task_has(tmp_path):
    assert {TaskFiles(tmp_path).resolve(name).parent for name in (*TASK_DATA, "model")} == {tmp_path}


def test_paths_become_real_ones_and_each_run_is_asked_for_where_it_is_needed(write, tmp_path):
    asked: list[str] = []

    def execute(stage: Stage) -> Path:
        asked.append(stage.config.name)
        return stage.folder

    stage = build_graph(
        write(ppo=PPO | {"evaluation": {"data": {"path": "task:eval_prompts"}, "reward": {"type": "task"}}})
    )
    config = resolve(stage, execute)
    assert asked == ["sft", "reward_model"]
    made = {value.rpartition("/")[2]: needed.folder for value, needed in stage.needs.items()}
    assert config.model.path == str(made["sft.yaml"] / "model")
    assert config.reward is not None
    assert config.reward.type == "model"
    assert config.reward.path == str(made["reward_model.yaml"] / "model")
    assert Path(config.data.path).is_file()
    assert config.evaluation is not None
    assert Path(config.evaluation.data.path).name == "eval_prompts.jsonl"
    assert made["sft.yaml"].parent == tmp_path / "runs" / "stages"
    collected = resolve(build_graph(write(dpo=DPO)), execute).data.path
    assert collected.endswith("/preferences.jsonl")


BEST = COLLECT | {"algorithm": {"name": "collect", "keep": "best", "samples_per_prompt": 4}}
COLLECTED = {"data": {"path": "run:collect.yaml"}}
RENAMED = {"path": "run:collect.yaml", "columns": {"completion": "chosen", "finished": "chosen_finished"}}


@pytest.mark.parametrize(
    ("collect", "reader", "file"),
    [
        (BEST, SFT | COLLECTED, "completions.jsonl"),
        (COLLECT, SFT | {"data": RENAMED}, "preferences.jsonl"),
        (BEST, COLLECT | COLLECTED, "completions.jsonl"),
        (COLLECT, PPO | COLLECTED, "preferences.jsonl"),
        (COLLECT, SFT | {"evaluation": COLLECTED | {"reward": {"type": "task"}}}, "preferences.jsonl"),
        (COLLECT, REWARD_MODEL | {"evaluation": COLLECTED}, "preferences.jsonl"),
    ],
)
def test_what_a_collect_run_keeps_is_read_where_it_fits(write, collect, reader, file):
    write(collect=collect, sft=SFT)
    config = resolve(build_graph(write(top=reader)), lambda stage: stage.folder)
    paths = [value for _, value in config.sources() if value.endswith(".jsonl")]
    assert Path(paths[-1]).name == file


@pytest.mark.parametrize(
    ("collect", "reader", "message"),
    [
        (
            COLLECT,
            SFT | COLLECTED,
            "data.path: run:TMP/collect.yaml keeps pairs, and sft trains on single completions; set",
        ),
        (
            BEST,
            DPO,
            "data.path: run:TMP/collect.yaml keeps single completions (algorithm.keep: best); dpo needs pairs; set",
        ),
        (
            BEST,
            REWARD_MODEL | {"data": {"path": "rows/hub"}, "evaluation": COLLECTED},
            "evaluation.data.path: run:TMP/collect.yaml keeps single completions (algorithm.keep: best); reward_model n",
        ),
    ],
)
def test_what_a_collect_run_keeps_is_refused_where_it_does_not_fit(write, tmp_path, collect, reader, message):
    write(collect=collect)
    with pytest.raises(ConfigError) as caught:
        check_graph(write(top=reader))
    (line,) = caught.value.problems
    assert line.replace(str(tmp_path), "TMP").startswith(message)
