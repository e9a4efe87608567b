"""What Tune is told and what is made of it: deaths, early ends, time and room. Real Ray and Tune; the trials only sleep."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import state as ray_state
from ray.util.placement_group import PlacementGroup, placement_group_table

from raylign import parse_config
from raylign.actors.session import ray_session
from raylign.actors.waiting import Stop
from raylign.config import RunConfig
from raylign.config.sweep import SweepConfig
from raylign.errors import PlacementError, UserError
from raylign.storage.run_folder import RunFolder
from raylign.tracking import Sink
from raylign.tuning import folders
from raylign.tuning.experiment import Experiment
from raylign.tuning.listener import TrialListener
from raylign.tuning.schedulers import make_scheduler

pytestmark = [pytest.mark.slow, pytest.mark.own_process, pytest.mark.timeout(600)]
PATIENCE = 10  # seconds, of the one that nothing is placed for


def config(name: str, **changes: Any) -> RunConfig:
    return parse_config(
        {
            "name": name,
            "task": {"name": "sentiment"},
            "model": {"path": "task:model"},
            "data": {"path": "task:corpus"},
            "algorithm": {"name": "sft"},
            "placement": {"policy": {"num_cpus": 1}},
            "limits": {"placement": 120},
            **changes,
        }
    )


def work(one: RunConfig, folder: Path, group: PlacementGroup, sink: Sink) -> None:
    """A fake run that does what its name says; every try leaves a line."""
    assert not Path.cwd().is_relative_to(folder.parent.parent)  # Tune has not moved us: relative paths hold
    tries = folder / "tries"
    with tries.open("a") as file:
        file.write(f"{os.getpid()}\n")
    match one.name.split("-"):
        case ["wrong"]:
            raise UserError("model.path: no such folder")
        case ["dies", "once"] if len(tries.read_text().split()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["fails"]:
            raise RuntimeError("broken")
        case ["loss", value]:
            with (folder / "metrics.jsonl").open("a") as file:
                for step in range(1, 7):
                    file.write(json.dumps({"step": step, "sft/loss": float(value)}) + "\n")
                    file.flush()
                    sink.log(step, {"sft/loss": float(value)})
        case ["sleeps"]:
            time.sleep(120)
    RunFolder(folder).write_summary({"name": one.name})


def run(folder: Path, names: list[str], **options: Any) -> dict[str, folders.Outcome]:
    patience = options.pop("patience", 120)
    trials = {name: config(name, limits={"placement": patience}) for name in names}
    folders.prepare(folder, trials, resume=True)
    arguments = {"max_failures": 1, "stop": Stop(), "listener": TrialListener(), "work": work} | options
    Experiment(folder, trials, **arguments).run()
    return {name: folders.read_outcome(folder, name) for name in names}


def free() -> bool:
    actors = [a for a in ray_state.actors().values() if a["State"] != "DEAD"]
    return not actors and all(group["state"] == "REMOVED" for group in placement_group_table().values())


def await_free() -> None:
    deadline = time.monotonic() + 30
    while not free():
        assert time.monotonic() < deadline, "actors or placement groups are left"
        time.sleep(0.2)


def test_ends_of_trials(tmp_path):
    """In one Ray: what is tried again and what is not, what asha ends and remembers, and who stops everything."""
    with ray_session():
        found = run(tmp_path / "a", ["good", "wrong", "dies-once", "fails"])
        tries = {name: len((one.folder / "tries").read_text().split()) for name, one in found.items()}
        assert tries == {"good": 1, "wrong": 1, "dies-once": 2, "fails": 2}
        assert {name: one.status for name, one in found.items()} == {
            "good": "finished",
            "wrong": "failed",
            "dies-once": "finished",
            "fails": "failed",
        }
        assert found["wrong"].error == "UserError: model.path: no such folder"
        assert found["fails"].error == "RuntimeError: broken"
        await_free()

        asked = SweepConfig.model_validate(
            {
                "name": "asha",
                "run": "x.yaml",
                "search": {"seed": {"grid": [0]}},
                "metric": "sft/loss",
                "mode": "min",
                "scheduler": {"type": "asha", "grace_steps": 2, "reduction_factor": 2},
            }
        )
        first = {name: config(name) for name in ("loss-1", "loss-9")}
        folders.prepare(tmp_path / "b", first, resume=True)
        found = run(tmp_path / "b", ["loss-1"], scheduler=make_scheduler(asked, tmp_path / "b", first))
        assert found["loss-1"].status == "finished"
        # A process later: asha has been told what the first one had reported.
        found = run(tmp_path / "b", ["loss-9"], scheduler=make_scheduler(asked, tmp_path / "b", first))
        assert found["loss-9"].stopped == "stopped early by the scheduler at step 2"
        assert found["loss-9"].ended
        fresh = {"loss-9": config("loss-9")}  # negative control: with nothing to compare it with it goes to its end
        folders.prepare(tmp_path / "c", fresh, resume=True)
        found = run(tmp_path / "c", ["loss-9"], scheduler=make_scheduler(asked, tmp_path / "c", fresh))
        assert found["loss-9"].status == "finished"
        await_free()

        start = time.monotonic()
        found = run(tmp_path / "d", ["sleeps"], max_seconds=4)
        assert time.monotonic() - start < 60
        assert not found["sleeps"].ended
        assert found["sleeps"].stopped is None  # nobody found it worse than the others
        await_free()

        stop = Stop()

        class StopsSoon(TrialListener):
            def started(self, trial: str) -> None:
                stop.request()

        found = run(tmp_path / "e", ["sleeps"], stop=stop, listener=StopsSoon())
        assert found["sleeps"].status == "new"
        await_free()

        holder = ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
        ray.get(holder.ready(), timeout=60)
        with pytest.raises(PlacementError, match=r"none could be placed within limits\.placement 10 s"):
            run(tmp_path / "f", ["good"], patience=PATIENCE)
        ray.util.remove_placement_group(holder)
        await_free()
