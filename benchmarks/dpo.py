"""DPO: raylign, TRL 1.16 (reference in the loop, and precomputed) and a plain loop, taking turns on the same work.

python benchmarks/dpo.py --rounds 3 --report benchmarks/DPO.md
"""

from __future__ import annotations

import sys
from pathlib import Path

import harness
import raylign_side
import report
import work
from peers.environment import python_of

AGREE = 1e-3  # TRL and the plain loop see the same batches in the same order, so in fp32 their losses agree


def main() -> None:
    parser = harness.arguments("Benchmark DPO against TRL and a plain loop.")
    parser.add_argument("--num-pairs", type=int, help="size of a smaller dataset, to check that everything runs")
    given = parser.parse_args()
    settings = work.settings(num_pairs=given.num_pairs)
    trl = python_of("trl-1.16", given.torch_index)
    sides = [
        raylign_side.side("dpo", settings, given.cores),
        harness.peer("TRL 1.16", trl, "trl_dpo.py", "--variant", "online"),
        harness.peer("TRL 1.16 precomputed", trl, "trl_dpo.py", "--variant", "precomputed"),
        harness.peer("plain loop", Path(sys.executable), "plain_dpo.py"),
    ]
    runs = harness.measure(harness.chosen(sides, given.sides), given, settings)
    text = report.markdown("DPO: 7M parameters, one epoch", "pairs", runs, given.cores)
    print(text)
    if given.report:
        given.report.write_text(text)
    fp32 = [run for run in runs if run.dtype == "fp32"]
    gap = report.largest_gap(fp32, "TRL 1.16", "plain loop", "loss")
    if gap is not None and gap > AGREE:
        sys.exit(
            f"TRL and the plain loop disagree by {gap:.2g} in the loss of a step: they are not doing the same work"
        )


if __name__ == "__main__":
    main()
