"""One placement group in which every phase of a run finds its seats. Arithmetic, and a lock; no Ray is started."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from raylign.actors.layout import bundles_of, envelope, lay_out, layouts, seats_in
from raylign.actors.waiting import Stop
from raylign.config import RoleResources, RunConfig, parse_config
from raylign.errors import DeadlineError, Interrupted
from raylign.storage.lock import locked
from tests.unit.config.test_sweep import RUN


def role(num_actors: int, num_cpus: float, num_gpus: float = 0.0) -> RoleResources:
    return RoleResources(num_actors=num_actors, num_cpus=num_cpus, num_gpus=num_gpus)


def config(algorithm: dict, **placement: dict) -> RunConfig:
    return parse_config(RUN | {"algorithm": algorithm, "placement": placement})


def test_an_envelope_is_as_large_as_the_largest_of_each_rank():
    learn = lay_out({"policy": role(2, 2, 1)}, "disaggregated")
    judge = lay_out({"evaluator": role(1, 4), "rollout": role(1, 1, 1)}, "disaggregated")
    both = envelope([learn, judge])
    assert both == [{"CPU": 2, "GPU": 1}, {"CPU": 4, "GPU": 1}]
    assert seats_in(both, learn) == [0, 1]
    assert seats_in(both, judge) == [1, 0]  # the engine with its GPU first, the evaluator in the second
    with pytest.raises(ValueError, match="has no place"):
        seats_in(both[:1], learn)
    with pytest.raises(ValueError, match="has no place"):
        seats_in([{"CPU": 2.0}, {"CPU": 4.0}], learn)


def test_an_online_run_has_one_phase_and_an_offline_one_is_judged_afterwards():
    ppo, dpo = config({"name": "ppo"}), config({"name": "dpo"})
    assert ppo.phases == (("policy", "critic", "reward", "rollout", "reference"),)
    assert bundles_of(ppo) == [{"CPU": 0.5}, {"CPU": 0.5}, {"CPU": 0.25}, {"CPU": 0.25}, {"CPU": 0.25}]
    assert dpo.phases == (("policy", "reference"), ("rollout", "evaluator", "reference"))
    assert bundles_of(dpo) == [{"CPU": 0.5}, {"CPU": 0.25}, {"CPU": 0.25}]
    assert config({"name": "collect"}).phases == (("rollout", "reward"),)


@pytest.mark.parametrize("algorithm", ["ppo", "dpo", "online_dpo", "grpo", "sft", "collect"])
@pytest.mark.parametrize("mode", ["disaggregated", "colocated"])
def test_every_phase_has_a_seat_of_its_own_for_every_bundle(algorithm, mode):
    roles = {
        "policy": {"num_actors": 2, "num_cpus": 3, "num_gpus": 1},
        "rollout": {"num_actors": 2, "num_cpus": 1, "num_gpus": 1},
        "reference": {"num_cpus": 2, "num_gpus": 0.5},
        "reward": {"num_cpus": 5},
    }
    one = config({"name": algorithm}, mode=mode, **roles)
    bundles = bundles_of(one)
    for _, layout in layouts(one):
        places = seats_in(bundles, layout)
        assert len(set(places)) == len(layout.bundles)
        for bundle, place in zip(layout.bundles, places, strict=True):
            assert all(bundles[place].get(key, 0) >= value for key, value in bundle.items())


def test_a_lock_is_one_process_s_and_goes_with_it(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from raylign.storage.lock import locked\n"
        "with locked(Path(sys.argv[1]), timeout=5, holds='x'):\n    print('held', flush=True); time.sleep(60)"
    )
    folder = tmp_path / "stage"
    other = subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "held"
        with (
            pytest.raises(DeadlineError, match=r"stage\.lock: for 0\.3 s another process makes it"),
            locked(folder, timeout=0.3, holds="makes it"),
        ):
            pytest.fail("two processes held one lock")
        stop = Stop()
        stop.request()
        with (
            pytest.raises(Interrupted, match="another process makes it"),
            locked(folder, timeout=60, holds="makes it", stop=stop),
        ):
            pytest.fail("two processes held one lock")
    finally:
        other.kill()
        other.wait(10)
    start = time.monotonic()
    with locked(folder, timeout=30, holds="makes it"):  # its death is enough
        assert time.monotonic() - start < 5
