"""Controllers of the KL coefficient, which pulls the policy back to the reference. No torch, for the driver."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MAX_ERROR = 0.2


@dataclass
class FixedKL:
    """A constant KL coefficient."""

    coef: float

    def update(self, kl_per_sequence: float, num_samples: int) -> None:
        """Do nothing; the method exists so that the training loop needs no `if`."""

    def state(self) -> dict[str, float]:
        """Return an empty state: the config fixes the coefficient."""
        return {}

    def restore(self, state: dict[str, float]) -> None:
        """Do nothing: the config fixes the coefficient."""


@dataclass
class AdaptiveKL:
    """A KL coefficient steered so that the KL of a sequence stays near a target (Ziegler et al. 2019, section 2.2).

        e    = clip((KL - target) / target, -0.2, 0.2)
        coef = coef * (1 + K e),   K = min(1, num_samples / horizon)

    The paper has K = 0.1; its code derives K from the number of samples, so that the pace does not depend on the batch
    size. K is at most 1 here: a horizon shorter than a batch could otherwise turn the coefficient negative.
    """

    coef: float
    target: float  # nats per sequence
    horizon: int  # samples

    def update(self, kl_per_sequence: float, num_samples: int) -> None:
        """Adjust `coef` to a measured KL: the mean of `num_samples` sequences, in nats per sequence.

        Raises:
            ValueError: the KL is not finite; it would make the coefficient nan for the rest of the run.
        """
        if not math.isfinite(kl_per_sequence):
            raise ValueError(f"kl_per_sequence is {kl_per_sequence}; leave bad rows out before the KL is averaged")
        error = min(max(kl_per_sequence / self.target - 1.0, -_MAX_ERROR), _MAX_ERROR)
        self.coef *= 1.0 + error * min(1.0, num_samples / self.horizon)

    def state(self) -> dict[str, float]:
        """Return the state to save with a commit."""
        return {"coef": self.coef}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from a saved state."""
        self.coef = state["coef"]


@dataclass
class AnnealedKL:
    """A KL coefficient that falls from `start` to `end`, by the same factor for every sample, then stays constant.

        coef = end * (start / end) ** (1 - n / horizon),   n samples seen, n <= horizon

    Under a weak penalty a policy collapses onto the first good completions that it samples and stops sampling others;
    a strong penalty at the beginning keeps the others likely until the policy has learned how good they are.
    """

    start: float
    end: float
    horizon: int  # samples
    num_samples: int = 0

    @property
    def coef(self) -> float:
        """The coefficient after `num_samples` samples."""
        left = max(0.0, 1.0 - self.num_samples / self.horizon)
        return self.end * max(1.0, self.start / self.end) ** left

    def update(self, kl_per_sequence: float, num_samples: int) -> None:
        """Count the samples; the measured KL is ignored."""
        self.num_samples += num_samples

    def state(self) -> dict[str, float]:
        """Return the state to save with a commit."""
        return {"num_samples": self.num_samples}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from a saved state."""
        self.num_samples = int(state["num_samples"])
