"""The examples of docs/extending.md are executed: those of a user in their own folder, those of the tree in a copy of it."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

from raylign.config import FunctionReward, RolloutConfig, SamplingConfig, TrackingConfig
from raylign.rewards import make_source
from raylign.rollout import RolloutWorker
from raylign.tracking import Tracker
from raylign.types import PromptSet, Ragged, RolloutBatch
from tests.unit.tiny import EOS, save_tiny, tiny_tokenizer

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "extending.md").read_text()


@dataclass(frozen=True)
class Block:
    language: str
    file: str  # named by the first line, `# path`; empty if there is none
    text: str


def blocks(page: str, section: str) -> list[Block]:
    """Return the code blocks of a section of a page, in order."""
    (body,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    found = []
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", body, re.DOTALL | re.MULTILINE):
        name = re.match(r"# (\S+\.py)\n", text)
        found.append(Block(language, name.group(1) if name else "", text[name.end() :] if name else text))
    return found


def apply(diff: str, source: str) -> str:
    """Return the source after the hunks of a diff without line numbers; each must match exactly once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        if source.count(old) != 1:
            raise ValueError(f"{source.count(old)} places match, not 1:\n{old}")
        source = source.replace(old, new)
    return source


def changed_tree(folder: Path, section: str) -> Path:
    """Return a folder with a copy of raylign in which the section's examples are carried out."""
    shutil.copytree(ROOT / "raylign", folder / "raylign", ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks(PAGE, section):
        path = folder / block.file
        if block.language == "diff":
            path.write_text(apply(block.text, path.read_text()))
        elif block.language == "python":
            assert not path.exists(), f"{block.file} is in the tree: the example needs another name"
            path.write_text(block.text)
    return folder


def python(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the files of a section into a folder on the path, and returns its YAML."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def write(section: str):
        files = [block for block in blocks(PAGE, section) if block.file]
        for block in files:
            Path(block.file).write_text(block.text)
            modules.append(Path(block.file).stem)
        return [yaml.safe_load(block.text) for block in blocks(PAGE, section) if block.language == "yaml"]

    yield write
    for name in modules:
        sys.modules.pop(name, None)


def test_a_reward(written):
    (config,) = written("A reward")
    source = make_source(FunctionReward(**config["reward"]), tiny_tokenizer(), None)
    tokens = np.array([[5, 6, 7, 8], [5, 6, 7, EOS]], dtype=np.int32)
    mask = np.array([[0, 1, 1, 1], [0, 1, 1, 1]], dtype=np.bool_)
    batch = RolloutBatch(
        tokens,
        np.array([1, 1], np.int32),
        mask,
        np.zeros((2, 4), np.float32),
        mask[:, 0],
        np.array([0, 0]),
        np.zeros(2, np.int64),
    )
    prompts = PromptSet(Ragged.from_rows([[5]], np.int32), {"target_words": [4]})
    scores = source.score(batch, prompts)
    np.testing.assert_allclose(scores.values, [-1 / 4, -2 / 4])  # 3 and 2 words where 4 are asked for
    assert scores.valid.all()


def test_an_engine(written):
    (config,) = written("A rollout engine")
    rollout = RolloutConfig(**config["rollout"], sampling=SamplingConfig(max_tokens=8))
    worker = RolloutWorker("no-model", rollout, "float32", eos_token_ids=(EOS,), run_seed=3)
    worker.load_weights(1, {"w": np.zeros(2, np.float32)})
    prompts = PromptSet(Ragged.from_rows([[5, 6], [7]], np.int32))
    batches = [worker.generate(prompts, np.array([0, 1]), 4, 1, 1) for _ in range(2)]
    np.testing.assert_array_equal(batches[0].tokens, batches[1].tokens)  # the seed decides
    assert len(batches[0]) == 8
    assert batches[0].policy_version.tolist() == [1] * 8
    np.testing.assert_allclose(batches[0].logprobs[batches[0].completion_mask], -np.log(32), rtol=1e-6)


def test_a_tracker(written, tmp_path):
    written("A tracker")
    from my_tracker import CsvSink  # pyright: ignore[reportMissingImports]  (written above)

    with Tracker(tmp_path, TrackingConfig(), "run", {}, sinks=[CsvSink("metrics.csv")]) as tracker:
        tracker.log(1, {"dpo/loss": 0.5})
        tracker.log(2, {"dpo/loss": 0.25, "dpo/margin": 1.0})
    with Path("metrics.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["1", "dpo/loss", "0.5"],
            ["2", "dpo/loss", "0.25"],
            ["2", "dpo/margin", "1.0"],
        ]


def test_a_provider(tmp_path):
    tree = changed_tree(tmp_path, "A cluster provider")
    (spec,) = (block.text for block in blocks(PAGE, "A cluster provider") if block.language == "yaml")
    (tree / "one-node.yaml").write_text(spec)
    python(tree, "-m", "raylign", "cluster", "render", "one-node.yaml")
    script = tree / "clusters" / "one-node-pbs.sh"
    assert "#PBS -q gpu\n#PBS -l select=1:ncpus=16:ngpus=4:mem=128gb\n" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True, timeout=20)


SLIC = """
from pathlib import Path
from pkgutil import resolve_name

import numpy as np

from raylign.config import ModelConfig, OptimizerConfig, load_config
from raylign.learners.spec import LearnerSpec
from raylign.types import PairSet, Ragged, SequenceSet
import raylign

assert Path(raylign.__file__).is_relative_to(Path.cwd()), raylign.__file__
algorithm = load_config("slic.yaml").algorithm
spec = LearnerSpec(OptimizerConfig(learning_rate=1e-2), 20, 4096, "float32", seed=0, max_skipped_steps=1)
model = ModelConfig(path="model", compute_dtype="float32")
learner = resolve_name(algorithm.learner)(model, spec, algorithm)

def side(last):
    rows = Ragged.from_rows([[5, 6, last], [7, 8, last]], np.int32)
    return SequenceSet(rows, Ragged.from_rows([[False, True, True]] * 2, np.bool_))

learner.set_data(PairSet(side(9), side(10)))
steps = [learner.update_rows(np.array([0, 1])) for _ in range(20)]
reported = {name for step in steps for name in step if name.startswith(("slic/", "sft/"))}
assert reported <= algorithm.step_metrics(), reported
print(steps[0]["loss"], steps[-1]["loss"], steps[-1]["slic/accuracy"])
"""


def test_an_algorithm(tmp_path):
    tree = changed_tree(tmp_path, "An algorithm")
    save_tiny(tree / "model", Qwen2ForCausalLM, Qwen2Config)
    (config,) = (block.text for block in blocks(PAGE, "An algorithm") if block.language == "yaml")
    (tree / "slic.yaml").write_text(config)
    first, last, accuracy = map(float, python(tree, "-c", SLIC).split())
    assert first > last
    assert accuracy == 1


def test_a_hunk_that_matches_nothing_is_an_error():
    assert apply(" a\n-b\n+c\n", "a\nb\n") == "a\nc\n"
    with pytest.raises(ValueError, match="0 places match"):
        apply(" a\n-x\n+c\n", "a\nb\n")


def test_blocks_are_found_by_section():
    page = textwrap.dedent("""\
        ## One
        ```python
        # a.py
        x = 1
        ```
        ## Two
        ```yaml
        y: 2
        ```
        """)
    assert blocks(page, "One") == [Block("python", "a.py", "x = 1\n")]
    assert blocks(page, "Two") == [Block("yaml", "", "y: 2\n")]
