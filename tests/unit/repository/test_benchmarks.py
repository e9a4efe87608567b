"""The benchmarks' own code: the work is the same everywhere, and raylign's side speaks today's config and metrics."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from raylign.config import parse_config

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    for name in ("work", "harness", "raylign_side", "report"):  # too plain to leave about for other tests
        sys.modules.pop(name, None)


def test_work_follows_from_the_seed_and_is_made_once(tmp_path):
    from transformers import AutoTokenizer  # heavy

    work = import_module("work")

    settings = work.settings(num_pairs=3, ppo_steps=1)
    for name in ("a", "b"):
        work.make(tmp_path / name, settings)
    for file in ("pairs.jsonl", "prompts.jsonl", "policy/model.safetensors", "reward/model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a" / "tokenizer")
    reward_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a" / "reward")
    assert reward_tokenizer.get_vocab() == tokenizer.get_vocab()  # or raylign would tokenise completions anew
    rows = [json.loads(line) for line in (tmp_path / "a" / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        for text in row.values():
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text.split())  # one word is one token
            assert min(ids) > 2  # and no special one

    written = (tmp_path / "a" / "pairs.jsonl").stat().st_mtime_ns
    work.make(tmp_path / "a", settings)
    assert (tmp_path / "a" / "pairs.jsonl").stat().st_mtime_ns == written
    work.make(tmp_path / "a", work.settings(num_pairs=2, ppo_steps=1))
    assert len((tmp_path / "a" / "pairs.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("algorithm", ["dpo", "ppo"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_raylign_side_writes_a_valid_config(tmp_path, monkeypatch, algorithm, dtype):
    raylign_side = import_module("raylign_side")
    work = import_module("work")

    (tmp_path / "raylign").touch()
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    settings = work.settings()
    command = raylign_side.side(algorithm, settings, cores=2).command(tmp_path / "work", tmp_path, dtype)
    config = parse_config(yaml.safe_load(Path(command[-1]).read_text()))
    assert config.algorithm.name == algorithm
    assert config.algorithm.name != "collect"
    assert config.algorithm.optimizer.learning_rate == settings[algorithm]["learning_rate"]
    assert config.algorithm.optimizer.schedule == "constant"
    assert config.model.compute_dtype == {"fp32": "float32", "bf16": "bfloat16"}[dtype]


def test_raylign_side_counts_the_reference_pass_and_refuses_a_run_without_it(tmp_path):
    raylign_side = import_module("raylign_side")
    work = import_module("work")

    side = raylign_side.side("dpo", work.settings(), cores=2)
    run = tmp_path / "runs" / "dpo"
    run.mkdir(parents=True)
    steps = [{"step": i, "dpo/loss": 0.5, "dpo/accuracy": 1.0} for i in range(1, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (run / "summary.json").write_text(json.dumps({"section_seconds": {"start": 9.0, "reference": 1.5, "step": 6.0}}))
    result = side.read(tmp_path)
    assert result["seconds_inner"] == 7.5
    assert result["losses"] == [{"loss": 0.5, "accuracy": 1.0}] * 3

    (run / "summary.json").write_text(json.dumps({"section_seconds": {"step": 6.0}}))
    with pytest.raises(SystemExit, match="reference"):
        side.read(tmp_path)


def test_report_takes_ratios_within_a_round():
    report = import_module("report")
    Measurement = import_module("harness").Measurement  # noqa: N806

    seconds = {"raylign": [10.0, 20.0, 10.0], "peer": [30.0, 40.0, 10.0]}
    runs = [
        Measurement(side, "fp32", whole, whole / 2, None, 8, [{"loss": 0.7}, {"loss": gap}], {"train": whole / 2})
        for side, gap in (("raylign", 0.5), ("peer", 0.4))
        for whole in seconds[side]
    ]
    text = report.markdown("title", "pairs", runs, 2)
    assert "| peer | 30.0 | 15.0 | - | 0.53 | 2.00 [1.00, 3.00] | 2.00 [1.00, 3.00] |" in text
    assert report.largest_gap(runs, "raylign", "peer", "loss") == pytest.approx(0.1)
    assert report.largest_gap(runs, "raylign", "absent", "loss") is None
