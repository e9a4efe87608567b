"""What is said while many runs are made."""

from __future__ import annotations

import time

from raylign.tuning.listener import LineProgress


def test_every_run_has_a_line_with_what_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines: list[str] = []
    noted = LineProgress(lines.append, total=3)
    noted.started("ppo-seed0")
    now[0] += 60
    noted.ended("ppo-seed0", "finished")
    now[0] += 90
    noted.ended("ppo-seed1", "failed")
    now[0] += 30
    noted.ended("ppo-seed2", "finished")
    assert lines == [
        "ppo-seed0: started",
        "ppo-seed0: finished; 1 of 3 in 1:00, about 2:00 to go",
        "ppo-seed1: failed; 2 of 3 in 2:30, about 1:15 to go",
        "ppo-seed2: finished; 3 of 3 in 3:00",
    ]
