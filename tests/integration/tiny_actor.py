"""An actor that does almost nothing."""

from __future__ import annotations

import os
import time

import numpy as np
import ray

from raylign.actors.actor_classes import RoleActor


class TinyActor(RoleActor):
    def pid(self) -> int:
        return os.getpid()

    def number(self) -> int:
        return self.worker

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def take(self, *values: object) -> int:
        return len(values)

    def fail(self, error: Exception) -> None:
        raise error

    def put(self) -> list[ray.ObjectRef]:
        return [ray.put(np.zeros(1_000_000))]

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def placement(self) -> str | None:
        group = ray.util.get_current_placement_group()
        return group and group.id.hex()
