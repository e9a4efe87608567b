"""PPO: raylign, TRL 1.12 and a plain loop, taking turns on the same work.

python benchmarks/ppo.py --rounds 3 --report benchmarks/PPO.md
"""

from __future__ import annotations

import sys
from pathlib import Path

import harness
import raylign_side
import report
import work
from peers.environment import python_of


def main() -> None:
    parser = harness.arguments("Benchmark PPO against TRL and a plain loop.")
    parser.add_argument(
        "--steps", type=int, help="number of rounds of rollout and update, to check that everything runs"
    )
    given = parser.parse_args()
    settings = work.settings(ppo_steps=given.steps)
    sides = [
        raylign_side.side("ppo", settings, given.cores),
        harness.peer("TRL 1.12", python_of("trl-1.12", given.torch_index), "trl_ppo.py"),
        harness.peer("plain loop", Path(sys.executable), "plain_ppo.py"),
    ]
    runs = harness.measure(harness.chosen(sides, given.sides), given, settings)
    text = report.markdown("PPO: 7M parameters, prompts of 32, completions of 64", "samples", runs, given.cores)
    print(text)
    if given.report:
        given.report.write_text(text)


if __name__ == "__main__":
    main()
