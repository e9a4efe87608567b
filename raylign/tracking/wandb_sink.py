"""Metrics in Weights & Biases, through its own client. If the client fails, the run continues without it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.errors import AuthenticationError, CommError, UsageError
from wandb.sdk.lib import wbauth
from wandb.sdk.lib.runid import generate_id

from raylign.config import WandbConfig
from raylign.errors import UserError, folded
from raylign.tracking.sink import Sink, TrackedRun

RUN_ID = "wandb_run_id"  # key of the state in a commit

logger = logging.getLogger(__name__)


class WandbSink(Sink):
    """One W&B run; a resumed process continues the run of the process before it.

    Credentials come from the environment (WANDB_API_KEY, or what `wandb login` stored), never from a config.
    Missing or refused credentials raise UserError before anything is placed. A server that does not answer within
    `init_timeout` seconds does not stop the run: its metrics stay on disk, to be sent later with `wandb sync`.
    After a resume the server ignores steps that it has already; a resumed run repeats them with the same numbers.
    """

    def __init__(
        self,
        run: TrackedRun,
        config: WandbConfig,
        *,
        init_timeout: float = 60.0,
        finish_timeout: float = 60.0,
    ) -> None:
        self._run_id = run.state.get(RUN_ID) or generate_id()
        self._mode = config.mode
        wandb.setup(wandb.Settings(silent=True))  # its messages would break the live view
        if config.mode != "offline":
            _require_credentials()

        def start(mode: Literal["online", "offline", "shared"]) -> wandb.Run:
            return wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                name=run.name,
                config=dict(run.config),
                dir=run.folder,
                id=self._run_id,
                resume="allow",
                mode=mode,
                settings=wandb.Settings(
                    init_timeout=init_timeout,
                    finish_timeout=finish_timeout,
                    reinit="create_new",  # trials in one process each have their own run
                    console="off",
                    silent=True,
                ),
            )

        try:
            self._run = start(config.mode)
        except UsageError as error:
            raise UserError(f"tracking.wandb: {folded(error)}; fix the section or remove it") from error
        except (CommError, TimeoutError) as error:
            if isinstance(error, AuthenticationError) or re.search(r"error 40[134]", str(error)):
                raise UserError(
                    f"tracking.wandb: the server refused project {config.project!r} ({folded(error)}); "
                    "check WANDB_API_KEY, entity and project, or set mode: offline"
                ) from error
            logger.warning("tracking.wandb: %s; metrics are kept offline, send them with `wandb sync`", folded(error))
            self._mode = "offline"
            # The service keeps the id of a run that it could not start; only a new service can use the id again.
            wandb.teardown()
            wandb.setup(wandb.Settings(silent=True))
            self._run = start("offline")
        self._run.define_metric("*", step_metric="step")
        self._alive = True

    @property
    def location(self) -> str:
        """Page of the run, or the folder to give to `wandb sync`."""
        return self._run.url or str(Path(self._run.dir).parent)

    def state(self) -> dict[str, Any]:
        return {RUN_ID: self._run_id}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # In shared mode several writers own the server's step counter; the metric "step" is the axis everywhere.
        own_step = None if self._mode == "shared" else step
        self._survive(lambda: self._run.log({"step": step, **metrics}, step=own_step), "log")

    def close(self, exit_code: int) -> None:
        """Upload what is left, for `finish_timeout` seconds at most."""
        self._survive(lambda: self._run.finish(exit_code=exit_code), "finish")

    def _survive(self, action: Callable[[], object], what: str) -> None:
        """Do it; if the client fails, log a warning and send no more. metrics.jsonl has every number."""
        if not self._alive:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the client documents no list of what it raises
            self._alive = False
            logger.warning("tracking.wandb: %s failed, no more is sent: %s", what, folded(error))


def _require_credentials() -> None:
    host = wandb.setup().settings.base_url
    try:
        # Never prompts: a prompt on the head node of a cluster would wait forever.
        credentials = wbauth.authenticate_session(host=host, source="raylign", prompt=False)
    except AuthenticationError as error:
        raise UserError(f"tracking.wandb: {folded(error)}; fix WANDB_API_KEY, or set mode: offline") from error
    if credentials is None:
        raise UserError(
            f"tracking.wandb: no credentials for {host}; set WANDB_API_KEY, run `wandb login`, or set mode: offline"
        )
