"""Open the Ray cluster of a run: one that is running, or a local one that ends with the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from raylign.actors.attach import attach


@contextmanager
def ray_session() -> Iterator[None]:
    """Use the Ray of this process; else attach to RAY_ADDRESS; else start a local Ray and stop it at the end.

    `ray job submit` sets RAY_ADDRESS for its driver, `clusters/launch.py` for that of `ray submit`: if it is set, no
    other Ray is ever started. A Ray that we start listens on loopback, has no dashboard and asks for a token (Ray's
    default for local clusters).

    Raises:
        UserError: see `attach`.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address not in ("", "local"):
        attach(address, **options)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **options)
    try:
        yield
    finally:
        ray.shutdown()
