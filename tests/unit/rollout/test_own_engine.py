"""An engine of the user's own, by its name."""

from __future__ import annotations

import sys

import pytest

from raylign.config import RolloutConfig
from raylign.errors import UserError
from raylign.rollout import make_engine

SOURCE = """
class Engine:
    def __init__(self, *given):
        self.given = given
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "own_engine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_engine"
    sys.modules.pop("own_engine", None)


def rollout(engine: str, allow_code: bool = True) -> RolloutConfig:
    return RolloutConfig(engine=engine, allow_code=allow_code)


def test_it_gets_what_the_engines_of_raylign_get(package):
    config = rollout(f"{package}:Engine")
    engine = make_engine(config.engine, "model", config, "float32", True)
    assert vars(engine)["given"] == ("model", config, "float32", True)


def test_its_code_runs_only_when_allowed(package):
    config = rollout(f"{package}:Engine").model_copy(update={"allow_code": False})  # past the config's own check
    with pytest.raises(UserError, match=r"^rollout\.allow_code: own_engine:Engine runs your own code; set true"):
        make_engine(config.engine, "model", config, "float32")
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("own_engine:Engin", "own_engine has no class 'Engin'; did you mean Engine"),
        ("no_such_engine:Engine", "no module 'no_such_engine'; install its package"),
    ],
)
def test_one_that_is_not_there(package, name, problem):
    config = rollout(name)
    with pytest.raises(UserError, match=f"^rollout.engine: {problem}") as caught:
        make_engine(config.engine, "model", config, "float32")
    assert "\n" not in str(caught.value)
