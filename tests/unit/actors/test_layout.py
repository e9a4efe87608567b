"""Which actor sits where, worked by hand."""

from __future__ import annotations

import pytest

from raylign.actors.layout import lay_out
from raylign.config import RoleResources


def role(num_actors: int, num_gpus: float, num_cpus: float = 1.0) -> RoleResources:
    return RoleResources(num_actors=num_actors, num_gpus=num_gpus, num_cpus=num_cpus)


def test_disaggregated_every_actor_has_a_bundle_of_its_own():
    layout = lay_out({"policy": role(2, 1), "reward": role(1, 0.25, 0.5)}, "disaggregated")
    assert layout.bundles == [{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}, {"CPU": 0.5, "GPU": 0.25}]
    assert layout.seats == {"policy": range(2), "reward": range(2, 3)}
    assert layout.gpu_shares == {"policy": 1, "reward": 0.25}
    assert layout.total == {"CPU": 2.5, "GPU": 2.25}


def test_colocated_roles_share_a_gpu_and_take_no_more_than_it():
    layout = lay_out({"policy": role(2, 1), "rollout": role(2, 1), "reward": role(1, 1)}, "colocated")
    assert layout.bundles == [{"CPU": 3, "GPU": 1}, {"CPU": 2, "GPU": 1}]
    assert layout.seats == {"policy": range(2), "rollout": range(2), "reward": range(1)}
    assert layout.gpu_shares == {"policy": 0.3333, "rollout": 0.3333, "reward": 0.3333}


@pytest.mark.parametrize("num_roles", range(1, 12))
def test_shares_never_come_to_more_than_the_bundle_has(num_roles):
    layout = lay_out({f"role{i}": role(1, 1) for i in range(num_roles)}, "colocated")
    assert sum(layout.gpu_shares.values()) <= layout.total["GPU"] == 1


def test_colocated_on_a_cpu_asks_for_no_gpu():
    layout = lay_out({"policy": role(2, 0, 0.5), "rollout": role(2, 0, 0.5)}, "colocated")
    assert layout.bundles == [{"CPU": 1}, {"CPU": 1}]
    assert layout.gpu_shares == {"policy": 0, "rollout": 0}
