"""The Ray cluster a run lives on: the one that is there, or a local one that ends with the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from raylign.errors import UserError


@contextmanager
def ray_session() -> Iterator[None]:
    """Use the Ray of this process; else attach to RAY_ADDRESS; else start a local Ray and stop it at the end.

    A Ray that we start listens on loopback, has no dashboard and asks for a token (Ray's default for local clusters).
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address=address, **options)
        except ConnectionError as e:
            raise UserError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there; check the address or unset it"
            ) from e
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **options)
    try:
        yield
    finally:
        ray.shutdown()
