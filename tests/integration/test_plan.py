"""`raylign plan` against the peak memory of the actors of real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from raylign.planning.devices import Device
from raylign.planning.plan import plan
from tests.integration.plan_cases import cases
from tests.integration.small_runs import Workshop

MACHINE = Device("this machine", 2**35, 1e12, 1e11, 2e10, is_gpu=False)
TOLERANCE = 0.15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


def check(folder: Path, name: str, timeout: float) -> None:
    """Execute a run, and compare the peak of every role with the plan's."""
    config = cases(folder)[name]
    predicted = plan(config, MACHINE).memory
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    done = Workshop(folder).run(name, timeout=timeout)
    measured = json.loads((done / "summary.json").read_text())["memory"]
    assert set(predicted) == set(measured)
    assert {role: predicted[role].peak for role in measured} == pytest.approx(
        {role: peak["peak_bytes"] for role, peak in measured.items()}, rel=TOLERANCE
    )


def test_plan_is_right_for_a_run(folder):
    check(folder, "reward_model", timeout=280)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["ppo", "grpo", "dpo", "sft"])
def test_plan_is_right_for_larger_runs(folder, name):
    check(folder, name, timeout=1700)
