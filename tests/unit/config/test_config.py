"""The loader tells the user where a config is wrong, what the problem is and what to write instead."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from raylign.config import RunConfig, load, load_config, parse_config
from raylign.config.graph import check_graph
from raylign.errors import ConfigError

ROOT = Path(__file__).parents[3]
COMPARISONS = set((ROOT / "recipes").glob("compare_*.yaml"))  # see tests/unit/compare/test_spec.py
RECIPES = sorted(set((ROOT / "recipes").glob("*.yaml")) - COMPARISONS)

DPO = """\
name: first
model:
  path: my/model
data:
  path: pairs.jsonl
algorithm:
  name: dpo
  beta: 0.1
"""
PPO = """\
name: second
task: {name: sentiment}
model: {path: "task:model"}
data: {path: "task:prompts"}
reward: {type: task}
algorithm:
  name: ppo
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    """What is wrong with a config, with the folder of the file cut off."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert all("\n" not in line for line in caught.value.problems)
    return [line.replace(f"{path.parent}/", "") for line in caught.value.problems]


def test_a_good_file_loads_with_its_defaults(write):
    config = load_config(write(DPO))
    assert config.algorithm.name == "dpo"
    assert config.algorithm.optimizer.schedule == "linear"
    assert config.output_dir == "runs"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("beta: 0.1", "betta: 0.1"), "run.yaml:8: algorithm.betta: unknown key; did you mean beta?"),
        (("data:", "dataa: 1\ndata:"), "run.yaml:4: dataa: unknown key; did you mean data?"),
        (("name: dpo", "name: dop"), "run.yaml:7: algorithm.name: unknown name 'dop'; did you mean dpo?"),
        (("  path: pairs.jsonl", "  split: test"), "run.yaml:4: data.path: this key is required; add it"),
        (("name: first\n", ""), "run.yaml:1: name: this key is required; add it"),
    ],
)
def test_a_wrong_key_names_the_line_and_the_nearest(write, change, problem):
    assert problems(write(DPO.replace(*change))) == [problem]


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (("beta: 0.1", "beta: high"), "run.yaml:8: algorithm.beta: ", ["number", "not 'high'"]),
        (("beta: 0.1", "beta: -1"), "run.yaml:8: algorithm.beta: ", ["greater than 0", "not -1"]),
        (("path: my/model", "path: [1, 2]"), "run.yaml:3: model.path: ", ["string", "not [1, 2]"]),
        (("  path: my/model", "  path: m\n  attention: fast"), "run.yaml:4: model.attention: ", ["sdpa", "'fast'"]),
        (("name: first", "name: a/b"), "run.yaml:1: name: ", ["'a/b'"]),
        (("name: first", "name: .."), "run.yaml:1: name: ", ["not a directory name"]),
        (("\n  name: dpo\n  beta: 0.1", " {}"), "run.yaml:6: algorithm: ", ["ppo, grpo", "kto, collect"]),
        (("\n  name: dpo\n", "\n"), "run.yaml:6: algorithm: ", ["say which one with name: one of ppo, grpo"]),
    ],
)
def test_a_wrong_value_names_the_line_and_the_value(write, change, place, words):
    (line,) = problems(write(DPO.replace(*change)))
    assert line.startswith(place)
    assert all(word in line for word in words)


def test_a_renamed_key_names_the_new_one_in_a_file_and_in_an_override(write, monkeypatch):
    monkeypatch.setitem(load.RENAMED, "algorithm.strength", "algorithm.beta")
    monkeypatch.setitem(load.RENAMED, "folder", "tracking.nowhere")
    monkeypatch.setitem(load.RENAMED, "beta", "algorithm.beta")
    path = write(DPO.replace("beta: 0.1", "strength: 0.1"))
    renamed = "algorithm.strength: renamed to beta; write that instead"
    assert problems(path) == [f"run.yaml:8: {renamed}"]
    assert problems(write(DPO), "algorithm.strength=1") == [f"override 'algorithm.strength=1': {renamed}"]
    (moved,) = problems(write(DPO), "beta=1")
    assert moved == "override 'beta=1': beta: renamed to algorithm.beta; write that instead"
    (unknown,) = problems(write(DPO), "folder=x")  # this kind of config has no such new key
    assert "folder: unknown key" in unknown


def test_every_fault_is_told_at_once(write):
    lines = problems(write(DPO.replace("beta: 0.1", "beta: x\n  epochs: 0").replace("path: my", "pth: my")))
    assert [line.split(": ")[1] for line in lines] == ["model.path", "model.pth", "algorithm.epochs", "algorithm.beta"]


def test_unreadable_files(write, tmp_path):
    assert problems(tmp_path / "none.yaml") == [
        "none.yaml: cannot read the config: No such file or directory; check the path"
    ]
    (line,) = problems(write("name: a\nmodel: {path: m\ndata: 1\n"))
    assert line.startswith("run.yaml:3: not valid YAML: ")
    assert problems(write("- a\n- b\n")) == [
        "run.yaml:1: a run config is a mapping of keys to values; this file is not"
    ]
    (line,) = problems(write(""))
    assert "mapping" in line


@pytest.mark.parametrize(
    ("text", "change", "problem"),
    [
        (PPO, ("reward: {type: task}\n", ""), "reward: ppo scores its samples; add a reward section"),
        (PPO, ("task: {name: sentiment}\n", ""), "model.path: task:model needs a task section"),
        (PPO, ("name: ppo", "name: ppo\nrollout: {sampling: {top_p: 0.9}}"), "rollout.sampling: ppo must sample from"),
        (PPO, ("name: ppo", "name: ppo\nrollout: {sampling: {top_k: 5}}"), "rollout.sampling: ppo must sample from"),
        (PPO, ("name: ppo", "name: ppo\n  minibatches: 65"), "algorithm.minibatches: 65 is more than the 64 samples"),
        (DPO, ("data:", "evaluation: {data: {path: p}}\ndata:"), "evaluation.reward: nothing scores the evaluation"),
        (DPO, ("data:", "reward: {type: task}\ndata:"), "reward: type task needs a task section"),
        (DPO, ("data:", "placement: {policy: {num_cpus: 0}}\ndata:"), "placement.policy: an actor needs num_cpus or"),
    ],
)
def test_contradictions_say_what_to_write(write, text, change, problem):
    assert text.replace(*change) != text
    (line,) = problems(write(text.replace(*change)))
    assert problem in line


COLOCATED = "placement: {mode: colocated, policy: {num_actors: 2}, rollout: {num_actors: 2}}\n"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("learner: {sharding: {shard_size: 2}}", "learner.sharding: shard_size: only fsdp splits the model"),
        ("learner: {sharding: {cpu_offload: true}}", "learner.sharding: cpu_offload: only fsdp moves shards"),
        (
            "learner: {sharding: {strategy: fsdp, shard_size: 2}}\nplacement: {policy: {num_actors: 3}}",
            "placement.policy.num_actors: 3 ranks do not make whole copies of learner.sharding.shard_size 2",
        ),
        (
            "learner: {sharding: {tensor_parallel: 2}}\nplacement: {policy: {num_actors: 2}}",
            "placement.critic.num_actors: 1 ranks do not make whole copies",
        ),
        ("rollout: {engine: 'my.engine:Engine'}", "rollout: engine: my.engine:Engine runs your own code"),
        ("rollout: {engine: vlm}", "rollout.engine: "),
        ("rollout: {engine: transformers, tensor_parallel: 2}", "rollout: tensor_parallel: only vLLM splits a model"),
        ("rollout: {elastic: {min_engines: 3, max_engines: 2}}", "max_engines: 2 is less than min_engines 3"),
        (
            COLOCATED.replace("rollout: {num_actors: 2}", "rollout: {num_actors: 1}"),
            "placement.rollout.num_actors: each colocated engine shares the place of a policy rank; set 2, not 1",
        ),
        (COLOCATED.replace("num_actors: 2", "num_actors: 2, num_gpus: 2", 1), "placement.policy.num_gpus: colocated"),
        (COLOCATED + "rollout: {elastic: {max_engines: 4}}", "rollout.elastic: colocated engines cannot come and go"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(write, lines, problem):
    (line,) = problems(write(PPO + lines))
    assert problem in line


def test_layouts_that_can_be(write):
    for lines in (
        "learner: {sharding: {strategy: fsdp, shard_size: 2}}\nplacement: {policy: {num_actors: 4}, critic: {num_actors: 2}}",
        COLOCATED,
        "rollout: {engine: 'my.engine:Engine', allow_code: true, elastic: {max_engines: 8}}",
    ):
        assert load_config(write(PPO + lines)).algorithm.name == "ppo"


@pytest.mark.parametrize("beta", ["0", "0.0", "-0.1"])
@pytest.mark.parametrize("name", ["dpo", "kto", "simpo", "cpo", "orpo"])
def test_a_beta_that_is_not_above_zero_is_refused(write, name, beta):
    change = f"name: {name}\n  beta: {beta}"
    (line,) = problems(write(DPO.replace("name: dpo\n  beta: 0.1", change)))
    assert line == f"run.yaml:8: algorithm.beta: input should be greater than 0, not {beta}"


@pytest.mark.parametrize(
    ("algorithm", "problem"),
    [
        ("name: online_dpo\n  beta: 0", "run.yaml:8: algorithm.beta: input should be greater than 0, not 0"),
        ("name: online_dpo\n  samples_per_prompt: 3", "algorithm.samples_per_prompt: input should be a multiple of 2"),
        ("name: online_dpo\n  loss: ipo", "label: soft is made for loss: sigmoid, not ipo; set bradley_terry or best"),
        (
            "name: online_dpo\n  loss: robust\n  label: best",
            "robust without it is plain DPO; set it",
        ),
        (
            "name: grpo\n  samples_per_prompt: 1",
            "a group of 1 is its own baseline, so every advantage would be 0; set 2",
        ),
        (
            "name: rloo\n  samples_per_prompt: 1",
            "a group of 1 is its own baseline, so every advantage would be 0; set 2",
        ),
        ("name: grpo\n  kl: {where: loss, estimator: k1}", "k1 in the loss has a gradient of 0 in expectation"),
        ("name: grpo\n  dynamic_sampling: 1\n  max_staleness: 1", "known only after scoring; set max_staleness: 0"),
        ("name: ppo\n  importance: {}\n  old_logprobs: engine", "importance: it compares the learner's logprobs with"),
        ("name: ppo\n  kl: {controller: adaptive, coef: 0}", "run.yaml:8: algorithm.kl: coef: the adaptive controller"),
        ("name: ppo\n  dual_clip: 1", "run.yaml:8: algorithm.dual_clip: input should be greater than 1, not 1"),
    ],
)
def test_an_online_algorithm_that_could_not_learn_is_refused(write, algorithm, problem):
    (line,) = problems(write(PPO.replace("name: ppo", algorithm)))
    assert line.startswith("run.yaml:")
    assert problem in line


@pytest.mark.parametrize(
    ("algorithm", "problem"),
    [
        ("name: kto\n  batch_size: 1", "algorithm.batch_size: input should be greater than or equal to 2, not 1"),
        ("name: kto\n  undesirable_weight: 0", "algorithm.undesirable_weight: input should be greater than 0, not 0"),
        ("name: dpo\n  label_smoothing: 0.5", "algorithm.label_smoothing: input should be less than 0.5, not 0.5"),
        (
            "name: dpo\n  loss: hinge\n  label_smoothing: 0.1",
            "label_smoothing: hinge does not use it; set it to 0, or loss: sig",
        ),
        (
            "name: dpo\n  loss: robust",
            "label_smoothing: robust without it is plain DPO; set it above 0",
        ),
        ("name: orpo\n  sft_coef: 0", "algorithm.sft_coef: input should be greater than 0, not 0"),
        ("name: simpo\n  gamma: -1", "algorithm.gamma: input should be greater than or equal to 0, not -1"),
    ],
)
def test_an_offline_algorithm_that_could_not_learn_is_refused(write, algorithm, problem):
    (line,) = problems(write(DPO.replace("name: dpo\n  beta: 0.1", algorithm)))
    assert line.startswith("run.yaml:")
    assert problem in line


def test_contradictions_are_not_seen_where_there_are_none(write):
    load_config(write(PPO))
    load_config(write(PPO.replace("name: ppo", "name: ppo\n  minibatches: 64")))
    load_config(write(PPO.replace("name: ppo", "name: grpo\n  samples_per_prompt: 2\n  kl: {where: reward}")))
    load_config(
        write(PPO.replace("name: ppo", "name: online_dpo\n  loss: ipo\n  label: best\n  samples_per_prompt: 4"))
    )
    load_config(write(DPO.replace("beta: 0.1", "beta: 1.0e-9\n  loss: robust\n  label_smoothing: 0.1")))


def test_overrides_make_sections_and_read_yaml(write):
    path = write(PPO)
    overrides = [
        "algorithm.steps=7",
        "tracking.wandb.project=p",
        "rollout.sampling.stop_token_ids=[1, 2]",
        "algorithm.steps=8",
        "data.columns={prompt: question}",
        "algorithm.kl.coef=1e-3",
    ]
    config = load_config(path, overrides)
    assert config.algorithm.name == "ppo"
    assert config.algorithm.steps == 8
    assert config.algorithm.kl.coef == 1e-3
    assert config.tracking.wandb is not None
    assert config.tracking.wandb.project == "p"
    assert config.rollout.sampling.stop_token_ids == (1, 2)
    assert config.data.columns == {"prompt": "question"}
    assert load_config(write(PPO + "tracking:\n"), ["tracking.tensorboard=true"]).tracking.tensorboard


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("algorithm.steps", "override 'algorithm.steps': write it as dotted.key=value"),
        ("=3", "override '=3': write it as dotted.key=value"),
        ("name.first=3", "override 'name.first=3': name is the value 'second' and has no keys below it"),
        ("algorithm.steps=[1", "override 'algorithm.steps=[1': the value is not valid YAML; quote it"),
        ("algorithm.stepz=3", "override 'algorithm.stepz=3': algorithm.stepz: unknown key; did you mean steps?"),
    ],
)
def test_a_bad_override_is_named(write, override, problem):
    assert problems(write(PPO), override) == [problem]


def test_a_dict_is_named_as_its_source():
    with pytest.raises(ConfigError, match=r"^sweep 3: name: this key is required"):
        parse_config({"model": {"path": "m"}, "data": {"path": "d"}, "algorithm": {"name": "sft"}}, "sweep 3")


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(ConfigError(["a", "b"])))
    assert (error.problems, str(error), error.exit_code) == (["a", "b"], "a\nb", 2)


def test_configs_are_frozen(write):
    config = load_config(write(DPO))
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"


def test_sources_are_the_edges_of_the_graph_of_runs(write):
    text = PPO.replace("reward: {type: task}", 'reward: {type: model, path: "run:rm.yaml"}')
    text = text.replace("name: ppo", 'name: ppo\n  critic: {path: "run:rm.yaml"}\nreference: {path: base}')
    path = write(text)
    other = f"run:{path.parent / 'rm.yaml'}"  # beside the file that names it, wherever the command is given
    assert load_config(path).sources() == [
        ("model.path", "task:model"),
        ("data.path", "task:prompts"),
        ("reference.path", "base"),
        ("reward.path", other),
        ("algorithm.critic.path", other),
    ]


@pytest.mark.parametrize("text", [DPO, PPO])
def test_yaml_round_trip(write, text):
    config = load_config(write(text))
    assert load_config(write(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_json_schema_documents_every_field():
    schema = RunConfig.model_json_schema()
    assert json.loads(json.dumps(schema)) == schema
    classes = {"RunConfig": schema} | schema["$defs"]
    assert {"PPOConfig", "DPOConfig", "SFTConfig", "SentimentTask"} <= set(classes)
    assert classes["DPOConfig"]["properties"]["beta"]["description"].startswith("Strength of the implicit KL")
    assert all(c["additionalProperties"] is False for c in classes.values())


def test_recipes_are_shipped():
    assert RECIPES, "recipes/ holds no run config: the test below would pass unseen"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses_and_round_trips(path, write):
    config = load_config(path)
    assert load_config(write(yaml.safe_dump(config.model_dump(mode="json")))) == config
    check_graph(config)  # the runs it needs are there and make what it takes from them


def test_the_examples_of_the_readme_parse(write):
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [load_config(write(text)).algorithm.name for text in examples] == ["dpo", "ppo"]


def test_the_config_is_light_to_import():
    code = (
        "import sys, raylign.config; print(*(m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
