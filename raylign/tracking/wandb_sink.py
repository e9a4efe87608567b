"""Weights & Biases through its own client. It may come late or die; the run goes on without it."""

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

logger = logging.getLogger(__name__)


class WandbSink:
    """One W&B run; `run_id` of an earlier process continues that run.

    Credentials come from the environment (WANDB_API_KEY, or what `wandb login` stored), never from a config.
    Missing or refused credentials raise UserError before anything is placed. A server that does not answer within
    `init_timeout` seconds does not stop the run: it is kept offline, to be sent later with `wandb sync`.
    After a resume the server ignores steps that it has already; those of a resumed run are the same numbers.
    """

    def __init__(
        self,
        run_dir: Path,
        config: WandbConfig,
        name: str,
        run_config: Mapping[str, Any],
        run_id: str | None = None,
        *,
        init_timeout: float = 60.0,
        finish_timeout: float = 60.0,
    ) -> None:
        self.run_id = run_id or generate_id()
        self._mode = config.mode
        wandb.setup(wandb.Settings(silent=True))  # its own messages would tear the live view
        if config.mode != "offline":
            _require_credentials()

        def start(mode: Literal["online", "offline", "shared"]) -> wandb.Run:
            return wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                name=name,
                config=dict(run_config),
                dir=run_dir,
                id=self.run_id,
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
            raise UserError(f"tracking.wandb: {folded(error)}; mend the section or remove it") from error
        except (CommError, TimeoutError) as error:
            if isinstance(error, AuthenticationError) or re.search(r"error 40[134]", str(error)):
                raise UserError(
                    f"tracking.wandb: the server refused project {config.project!r} ({folded(error)}); "
                    "check WANDB_API_KEY, entity and project, or set mode: offline"
                ) from error
            logger.warning("tracking.wandb: %s; metrics are kept offline, send them with `wandb sync`", folded(error))
            self._mode = "offline"
            # The service holds the id of a run that it could not start; a new service, for this process, frees it.
            wandb.teardown()
            wandb.setup(wandb.Settings(silent=True))
            self._run = start("offline")
        self._run.define_metric("*", step_metric="step")
        self._alive = True

    @property
    def location(self) -> str:
        """Where to look: the page of the run, or the folder to give to `wandb sync`."""
        return self._run.url or str(Path(self._run.dir).parent)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # In shared mode several writers own the server's step counter; the metric "step" is the axis everywhere.
        own_step = None if self._mode == "shared" else step
        self._survive(lambda: self._run.log({"step": step, **metrics}, step=own_step), "log")

    def close(self, exit_code: int) -> None:
        """Uploads what is left, for `finish_timeout` seconds at most."""
        self._survive(lambda: self._run.finish(exit_code=exit_code), "finish")

    def _survive(self, action: Callable[[], object], what: str) -> None:
        """Named recovery: a dead client costs the dashboard, not the run; metrics.jsonl has every number."""
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
        # Never prompts: a prompt on the head node of a cluster would wait for ever.
        found = wbauth.authenticate_session(host=host, source="raylign", prompt=False)
    except AuthenticationError as error:
        raise UserError(f"tracking.wandb: {folded(error)}; mend WANDB_API_KEY, or set mode: offline") from error
    if found is None:
        raise UserError(
            f"tracking.wandb: no credentials for {host}; set WANDB_API_KEY, run `wandb login`, or set mode: offline"
        )
