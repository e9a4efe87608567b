"""What is said of the trials of a sweep where there is no terminal, line by line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from raylign.config.search_space import Sweep, load_sweep
from raylign.tuning.population import Exploit
from raylign.tuning.progress import SweepProgress
from tests.unit.tuning.test_results import RUN

PBT = {"type": "pbt", "every_steps": 2, "mutate": ["algorithm.kl.coef"]}


def make(folder: Path, **changes: Any) -> Sweep:
    (folder / "ppo.yaml").write_text(yaml.safe_dump(RUN))
    search = {"algorithm.kl.coef": {"grid": [0.1, 0.2]}, "seed": {"grid": [3]}}
    tree = {"name": "two", "run": "ppo.yaml", "search": search, "metric": "evaluation/score", **changes}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree))
    return load_sweep(folder / "sweep.yaml")


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


def lines(said: io.StringIO) -> list[str]:
    return said.getvalue().splitlines()


def test_a_line_for_each_beginning_and_end(tmp_path, said):
    with SweepProgress(make(tmp_path), 0, console=Console(file=said)) as board:
        board.started("000")
        board.reported("000", 2, {"evaluation/score": 0.5})
        board.ended("000", "finished")
        board.started("001")
        board.ended("001", "interrupted")
    assert lines(said) == [
        "trial 000: started (kl.coef 0.1, seed 3)",
        "trial 000: finished at step 2; 1 finished, 1 waiting",
        "trial 001: started (kl.coef 0.2, seed 3)",
        "trial 001: interrupted; 1 finished, 1 interrupted",
    ]


def test_a_population_is_told_with_the_values_that_it_has_now(tmp_path, said):
    sweep = make(tmp_path, scheduler=PBT)
    with SweepProgress(sweep, 0, console=Console(file=said)) as board:
        board.started("000")
        board.reported("000", 2, {})
        board.ended("000", "interrupted")
        board.exploited(2, Exploit("000", "001", {"algorithm.kl.coef": 0.24}, seed=5))
        board.started("000")
    assert lines(said) == [
        "trial 000: started (kl.coef 0.1, seed 3)",
        "trial 000: committed at step 2; 1 committed, 1 waiting",
        "trial 000: copied from trial 001 at step 2 (kl.coef 0.24, seed 3)",
        "trial 000: continued (kl.coef 0.24, seed 3)",
    ]
    resumed = SweepProgress(
        sweep, 0, earlier=[Exploit("000", "001", {"algorithm.kl.coef": 0.3}, 5)], console=Console(file=said)
    )
    resumed.started("000")
    assert lines(said)[-1] == "trial 000: started (kl.coef 0.3, seed 3)"


def test_quiet_says_nothing(tmp_path, said):
    with SweepProgress(make(tmp_path), 0, quiet=True, console=Console(file=said)) as board:
        board.started("000")
        board.exploited(2, Exploit("000", "001", {}, 5))
        board.ended("000", "finished")
    assert said.getvalue() == ""
