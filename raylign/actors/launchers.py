"""Check a cluster YAML with Ray's own validation."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import jsonschema
import ray
from ray.autoscaler._private.util import prepare_config, validate_config

from raylign.errors import UserError


def check_cluster_yaml(tree: dict[str, Any], name: str) -> None:
    """Complete and validate a cluster YAML as `ray up` would.

    Raises:
        UserError: Ray refuses it.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Ray prints what it fills in
            validate_config(prepare_config(copy.deepcopy(tree)))
    except jsonschema.ValidationError as e:
        place = ".".join(map(str, e.absolute_path)) or "the file"
        raise UserError(f"{name}: {place}: Ray {ray.__version__} refuses it: {e.message}; change the spec") from None
    except (ValueError, RuntimeError) as e:
        raise UserError(f"{name}: Ray {ray.__version__} refuses it: {e}; change the spec") from None
