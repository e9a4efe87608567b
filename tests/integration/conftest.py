"""The workshop in which the integration tests run raylign."""

import pytest
import yaml

from tests.integration.small_runs import CONFIGS, ROLLOUT, TASK, Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """One output directory for the whole session, so that SFT and preferences are made once."""
    folder = tmp_path_factory.mktemp("workshop")
    for name, config in CONFIGS.items():
        tree = {"name": name, "output_dir": str(folder / "runs"), "task": TASK, "rollout": ROLLOUT, **config}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return Workshop(folder)
