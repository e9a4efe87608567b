"""How hard the policy is pulled back to the reference: the coefficient of the KL. Without torch, for the driver."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MAX_ERROR = 0.2


@dataclass
class FixedKL:
    """A KL coefficient that stays where it was set."""

    coef: float

    def update(self, kl_per_sequence: float, num_samples: int) -> None:
        """Nothing to learn from a measured KL; here so that the loop needs no `if`."""

    def state(self) -> dict[str, float]:
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Its config says all."""


@dataclass
class AdaptiveKL:
    """A KL coefficient steered so that the KL of a sequence stays near a target (Ziegler et al. 2019, section 2.2).

        e    = clip((KL - target) / target, -0.2, 0.2)
        coef = coef * (1 + K e),   K = min(1, num_samples / horizon)

    The paper has K = 0.1; its code takes K from the samples seen, so that the pace does not hang on the batch size.
    K is held to 1 here: a horizon shorter than a batch would otherwise turn the coefficient negative.
    """

    coef: float
    target: float  # nats per sequence
    horizon: int  # samples

    def update(self, kl_per_sequence: float, num_samples: int) -> None:
        """Move `coef` by what was measured: the mean KL of a sequence, in nats, over `num_samples` sequences.

        Raises:
            ValueError: the KL is not finite; steering by it would ruin the coefficient for good.
        """
        if not math.isfinite(kl_per_sequence):
            raise ValueError(f"kl_per_sequence is {kl_per_sequence}; leave bad rows out before the KL is averaged")
        error = min(max(kl_per_sequence / self.target - 1.0, -_MAX_ERROR), _MAX_ERROR)
        self.coef *= 1.0 + error * min(1.0, num_samples / self.horizon)

    def state(self) -> dict[str, float]:
        return {"coef": self.coef}

    def restore(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]


@dataclass
class AnnealedKL:
    """A KL coefficient that falls from `start` to `end`, by the same factor for every sample, then stays.

        coef = end * (start / end) ** (1 - n / horizon),   n samples seen, n <= horizon

    A policy under a weak penalty moves to the first good completions it meets and stops to sample the others; under
    a strong one it keeps them until it has learned what follows them.
    """

    start: float
    end: float
    horizon: int  # samples
    num_samples: int = 0

    @property
    def coef(self) -> float:
        left = max(0.0, 1.0 - self.num_samples / self.horizon)
        return self.end * max(1.0, self.start / self.end) ** left

    def update(self, kl_per_sequence: float, num_samples: int) -> None:
        """Count the samples; the measured KL does not matter."""
        self.num_samples += num_samples

    def state(self) -> dict[str, float]:
        return {"num_samples": self.num_samples}

    def restore(self, state: dict[str, float]) -> None:
        self.num_samples = int(state["num_samples"])
