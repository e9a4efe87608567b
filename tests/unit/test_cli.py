"""The command line: a user's mistake costs one line and a second, and starts nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import pytest
import ray
import yaml

from raylign.cli import main
from raylign.config import SentimentTask
from raylign.tasks import prepare

ROOT = Path(__file__).parents[2]
RAYLIGN = [sys.executable, "-m", "raylign"]
RECIPE = str(ROOT / "recipes" / "ppo_sentiment_rm.yaml")
TASK = SentimentTask(
    name="sentiment", num_reviews=100, num_prompts=10, num_eval_prompts=10, hidden_size=32, num_layers=1
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model with a context of 96 tokens, one token a word."""
    return str(prepare(TASK, tmp_path_factory.mktemp("task") / "made").resolve("model"))


def command(*args: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The program as a user runs it."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*RAYLIGN, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def the_line(stderr: str) -> str:
    assert stderr.endswith("\n")
    (line,) = stderr.splitlines()
    assert line.startswith("raylign: ")
    return line.removeprefix("raylign: ")


GOOD = {"name": "r", "model": {"path": "m"}, "data": {"path": "rows.jsonl"}, "algorithm": {"name": "sft"}}


def text(**changes: object) -> str:
    return yaml.safe_dump(GOOD | changes, sort_keys=False)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            text(algorithm={"name": "sft", "epoch": 1}),
            r"run.yaml:8: algorithm.epoch: unknown key; did you mean epochs\?",
        ),
        (text(seed="many"), "run.yaml:8: seed: input should be a valid integer, .*, not 'many'"),
        ("name: r\nmodel: {path: m\ndata: 1\n", "run.yaml:3: not valid YAML: .*; check indentation and quotes"),
        (None, "run.yaml: cannot read the config: No such file or directory; check the path"),
        (text(model={"path": "run:no.yaml"}), ".*no.yaml: cannot read the config: No such file .*; check the path"),
        (
            text(task={"name": "sentiment"}, data={"path": "task:rows"}),
            "data.path: the task has no task:rows for this; write task:corpus or .*",
        ),
    ],
)
def test_a_wrong_config_costs_one_line(tmp_path, content, line):
    if content is not None:
        (tmp_path / "run.yaml").write_text(content)
    for verb in ("validate", "run"):
        done = command(verb, "run.yaml", folder=tmp_path)
        assert done.returncode == 2
        assert re.fullmatch(line, the_line(done.stderr))
        assert done.stdout == ""


LONG = json.dumps({"text": "good " * 200})
ROW = json.dumps({"text": "a good film"})
LABELLED = json.dumps({"prompt": "a film", "completion": " good .", "label": True})


@pytest.mark.parametrize(
    ("rows", "algorithm", "line"),
    [
        (None, "sft", r"data\.path: no such file or folder: rows\.jsonl \(run r\); check the path .*"),
        (f"{ROW}\n{{\n", "sft", r"rows\.jsonl:2: not valid JSON: .*; fix or remove the line"),
        (f"{ROW}\n", "dpo", r"rows\.jsonl:1: no column 'chosen' \(found: text\); pairs need chosen \+ rejected.*"),
        (
            f"{LABELLED}\n",
            "dpo",
            r"rows\.jsonl:1: a completion with a label is not a pair; set algorithm\.name: kto, .*",
        ),
        (
            f"{LABELLED}\n{LABELLED}\n",
            "kto",
            r"rows\.jsonl: 2 rows are labelled good and 0 bad, .*; add bad rows, .*",
        ),
        ("\n\n", "sft", r"rows\.jsonl: the dataset has no rows; check data\.path and data\.split"),
        (
            f"{ROW}\n\n{LONG}\n",
            "sft",
            r"rows\.jsonl:3: prompt \+ completion has 201 tokens, the limit is 96; shorten.*",
        ),
    ],
)
def test_wrong_rows_cost_one_line_and_no_ray(tmp_path, monkeypatch, capfd, model, rows, algorithm, line):
    if rows is not None:
        (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "run.yaml").write_text(text(model={"path": model}, algorithm={"name": algorithm}))
    monkeypatch.chdir(tmp_path)
    before = psutil.Process().children(recursive=True)
    with pytest.raises(SystemExit) as ended:
        main(["run", "run.yaml"])
    assert ended.value.code == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(line, the_line(err))
    assert out == ""
    assert not ray.is_initialized()
    assert [p for p in psutil.Process().children(recursive=True) if p not in before] == []
    assert not (tmp_path / "runs").exists()


def test_a_prompt_longer_than_the_context_is_told_by_the_program(tmp_path):
    """Whole: a process of its own, which makes the task's model, and ends with its session empty."""
    config = text(
        task=TASK.model_dump(),
        model={"path": "task:model"},
        algorithm={"name": "ppo"},
        reward={"type": "task"},
    )
    (tmp_path / "run.yaml").write_text(config)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a good film " * 20}) + "\n")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*RAYLIGN, "run", "run.yaml"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 2
    assert re.fullmatch(r"rows\.jsonl:1: the prompt has 60 tokens, the limit is 32; shorten it, .*", the_line(err))
    assert out == ""
    assert in_session(process.pid) == []
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tasks"]


def in_session(session: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


def test_the_session_of_a_process_is_seen():
    """Negative control of `in_session`."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        assert in_session(process.pid) == [process.pid]
    finally:
        process.kill()
        process.communicate()
    assert in_session(process.pid) == []


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["validate", RECIPE]])
def test_looking_is_quick(args):
    took = []
    for _ in range(3):
        start = time.perf_counter()
        done = command(*args)
        took.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(took) < 1, took


@pytest.mark.parametrize("args", [["--help"], ["validate", RECIPE], ["schema"]])
def test_looking_imports_nothing_heavy(args):
    code = """if True:
        import sys
        from raylign.cli import main
        try:
            main(sys.argv[1:])
        except SystemExit as e:
            heavy = {"torch", "ray", "vllm", "transformers", "datasets"} & set(sys.modules)
            sys.exit(f"{e.code} {sorted(heavy)}")
        """
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.strip() == "0 []"


def test_validate_names_the_runs_that_are_needed():
    done = command("validate", RECIPE, "seed=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{RECIPE}: valid: ppo run 'ppo_sentiment_rm', "
        "needs sft_sentiment, preferences_sentiment, reward_model_sentiment\n"
    )


def test_compare_takes_a_spec_or_overrides_of_the_exact_task(tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text("name: x\nmethods: []\nbetas: [1]\nseeds: [0]\n")
    done = command("compare", str(spec))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{spec}:2: methods: " in done.stderr
    done = command("compare", str(spec), "task.seed=1")
    assert "task.seed=1: a spec has its own overrides" in done.stderr
    done = command("compare", "name=a.yaml", "--betas", "0")  # an override, though it ends in .yaml
    assert "--betas: 0; the optimum exists only for a beta above 0" in done.stderr


def test_the_schema_is_one_and_accepts_the_recipes():
    done = command("schema")
    assert done.returncode == 0
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = yaml.safe_load(Path(RECIPE).read_text())
    validator.validate(good)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(good | {"sede": 1})


def test_doctor_ends_with_what_it_found(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = command("doctor", folder=tmp_path)
    lines = [line for line in done.stdout.splitlines() if not line.lstrip().startswith("->")]
    assert {line.split()[0] for line in lines} <= {"ok", "warn", "fail"}
    assert done.returncode == int(any(line.startswith("fail") for line in lines))
    monkeypatch.setenv("RAY_ADDRESS", "no-port")
    done = command("doctor", folder=tmp_path)
    assert done.returncode == 1
    assert "\nfail  ray address" in done.stdout


def test_an_unknown_command_is_an_input_error():
    done = command("rum", RECIPE)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
