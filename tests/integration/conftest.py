"""The workshop in which the integration tests run raylign, and processes of their own for tests that need one."""

import os
import subprocess
import sys

import pytest
import yaml

from tests.integration.small_runs import CONFIGS, ROLLOUT, TASK, Ended, Workshop

INNER = "RAYLIGN_TEST_IN_ITS_OWN_PROCESS"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `own_process` in a fresh one: Ray keeps its way to authenticate for the life of a process, and in
    its environment."""
    if pyfuncitem.get_closest_marker("own_process") is None or INNER in os.environ:
        return None
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", pyfuncitem.nodeid],
        cwd=pyfuncitem.config.rootpath,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, INNER: "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with Ended(process):  # the inner test has the same time limit as this one
        output, _ = process.communicate()
    if process.returncode != 0:
        pytest.fail(output, pytrace=False)
    print(output)  # noqa: T201  (pytest shows it with -s: the figures of a test that measures)
    return True


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """One output directory for the whole session, so that SFT and preferences are made once."""
    folder = tmp_path_factory.mktemp("workshop")
    for name, config in CONFIGS.items():
        tree = {"name": name, "output_dir": str(folder / "runs"), "task": TASK, "rollout": ROLLOUT, **config}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return Workshop(folder)
