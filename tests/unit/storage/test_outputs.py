"""Where a relative output_dir is, on one machine, on a cluster, and in a Ray job."""

from __future__ import annotations

import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from raylign.actors.attach import shipped
from raylign.errors import UserError
from raylign.storage.outputs import output_base


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.delenv("RAYLIGN_STORAGE", raising=False)
    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR, raising=False)


def test_relative_is_in_the_working_directory_or_in_the_shared_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_base("runs") == tmp_path / "runs"
    monkeypatch.setenv("RAYLIGN_STORAGE", "/mnt/shared")
    assert str(output_base("runs")) == "/mnt/shared/runs"
    assert str(output_base("/elsewhere/runs")) == "/elsewhere/runs"


def test_a_job_does_not_write_where_ray_removes(monkeypatch):
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    with pytest.raises(UserError, match="output_dir: runs is relative, and Ray removes the folder of a job; set"):
        output_base("runs")
    assert str(output_base("/mnt/shared/runs")) == "/mnt/shared/runs"
    monkeypatch.setenv("RAYLIGN_STORAGE", "/mnt/shared")
    assert str(output_base("runs")) == "/mnt/shared/runs"


def test_what_a_job_ships_is_not_shipped_twice():
    job = '{"runtime_env": {"env_vars": {"HF_HOME": "/theirs"}}}'
    environment = {"HF_HOME": "/theirs", "NCCL_DEBUG": "INFO", "HF_TOKEN": "x", "PATH": "/bin", "WANDB_API_KEY": "x"}
    assert shipped(environment) == {"HF_HOME": "/theirs", "NCCL_DEBUG": "INFO"}
    assert shipped(environment | {RAY_JOB_CONFIG_JSON_ENV_VAR: job}) == {"NCCL_DEBUG": "INFO"}
