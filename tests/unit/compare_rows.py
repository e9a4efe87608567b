"""Rows of a comparison that was never run, with numbers that are known."""

from __future__ import annotations

import math
from dataclasses import replace

from raylign.compare.costing import Cost
from raylign.compare.records import Point, RunRecord, StageUse
from raylign.compare.samples import Sample

SEEDS = (0, 1, 2, 3)
BETAS = (0.1, 0.5)
NUM_PROMPTS = 24
LABELS = {"ppo": "PPO", "dpo": "DPO"}
CHEAP, DEAR = 20.0, 100.0  # device-seconds
SFT, PAIRS = "sft-0123456789ab", "pairs-0123456789ab"


def cost(seconds: float, memory: int, copies: tuple[str, ...]) -> Cost:
    roles = dict.fromkeys(copies, 1)
    return Cost(
        wall_seconds=seconds,
        start_seconds=5.0,
        device="cpu",
        device_seconds={role: seconds / len(roles) for role in roles},
        learning_seconds=seconds / 2,
        learning_device_seconds=seconds,
        reference_device_seconds=0.0,
        devices=2.0,
        peak_bytes={role: memory // len(roles) for role in roles},
        learning_bytes=memory,
        tokens_generated=1000,
        tokens_trained=2000,
        flops=1e12,
        model_copies=len(copies),
        copies_of=copies,
    )


def samples(level: float, seed: int, longer: int = 0) -> tuple[Sample, ...]:
    """Scores around `level`, the same spread for everyone, in another order for every seed."""
    return tuple(
        Sample(
            f"prompt {i}",
            f"words {'very ' * (longer + i % 3)}<b>good</b>",
            level + math.sin(7 * i + 3 * seed),
            5 + longer + i % 3,
        )
        for i in range(NUM_PROMPTS)
    )


def row(method: str, beta: float, seed: int, score: float) -> RunRecord:
    cheap = method == "dpo"
    took = (CHEAP if cheap else DEAR) * (1 + 0.01 * seed)
    own = cost(
        took, 200 if cheap else 500, ("policy", "reference") if cheap else ("policy", "critic", "rollout", "reference")
    )
    needed = [SFT, PAIRS] if cheap else [SFT]
    after = samples(score, seed, longer=1)
    middle = [] if cheap else [Point(1, took / 2, score / 2, 2.0, reward=0.5, reward_kl=1.0)]
    end = sum(s.score or 0.0 for s in after) / len(after)
    return RunRecord(
        id=f"{method}-beta{beta:g}-seed{seed}",
        method=method,
        label=LABELS[method],
        algorithm=method,
        setting={"beta": beta},
        seed=seed,
        folder=f"/nowhere/{method}-{beta}-{seed}",
        config=f"/nowhere/configs/{method}-{beta}-{seed}.yaml",
        score_before=0.0,
        score_after=end,
        kl=1.0 / beta + 0.1 * seed,
        length_before=5.0,
        length_after=6.0 + 0.1 * seed,
        finished=0.9,
        optimizer_steps=48,
        cost=own,
        stages=tuple(StageUse(name, f"/nowhere/stages/{name}", cost(30.0, 100, ("policy",))) for name in needed),
        curve=(Point(0, 0.0, 0.0, 0.0), *middle, Point(2, took, end, 1.0 / beta)),
        before=samples(0.0, seed),
        after=after,
    )


def made_rows(*, dpo: float = 2.0, ppo: float = 1.0, seeds: tuple[int, ...] = SEEDS) -> list[RunRecord]:
    """Of two methods at two betas; `dpo` and `ppo` are their scores at beta 0.1, at 0.5 they have half of it."""
    scores = {"ppo": ppo, "dpo": dpo}
    return [
        row(method, beta, seed, scores[method] * (1.0 if beta == BETAS[0] else 0.5) + 0.02 * seed)
        for seed in seeds
        for method in ("ppo", "dpo")
        for beta in BETAS
    ]


def shuffled(rows: list[RunRecord]) -> list[RunRecord]:
    """The same runs under the other method's name in every second seed: whatever a name says is gone."""
    other = {"ppo": "dpo", "dpo": "ppo"}
    return [
        replace(r, method=other[r.method], algorithm=other[r.method], label=LABELS[other[r.method]])
        if r.seed % 2
        else r
        for r in rows
    ]
