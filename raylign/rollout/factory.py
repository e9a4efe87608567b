"""The choice between the generation engines."""

from __future__ import annotations

from importlib.util import find_spec
from pkgutil import resolve_name

from raylign.config import LoRAConfig, RolloutConfig
from raylign.config.engines import ENGINES
from raylign.errors import UserError
from raylign.rollout.engine import Dtype, RolloutEngine
from raylign.user_code import import_callable


def make_engine(
    kind: str,
    model_path: str,
    rollout: RolloutConfig,
    dtype: Dtype,
    trust_remote_code: bool = False,
    lora: LoRAConfig | None = None,
    sleeps: bool = False,
) -> RolloutEngine:
    """Return the engine that `kind` names, with the weights of `model_path` (a Hugging Face folder or hub name).

    A class of the user, `package.module:Class`, is called with `(model_path, rollout, dtype, trust_remote_code)`, and
    `lora=` where the policy learns an adapter. An engine is imported only here, because vLLM takes seconds to import
    and may not be installed.

    Args:
        sleeps: True if `sleep` will be called.
    Raises:
        UserError: the engine's package is not installed, or the class is not allowed or does not exist.
    """
    if ":" in kind:
        if not rollout.allow_code:
            raise UserError(f"rollout.allow_code: {kind} runs your own code; set true to permit it")
        example = "class {name}: def __init__(self, model_path, rollout, dtype, trust_remote_code)"
        return import_callable(kind, "rollout.engine", "class", example)(
            model_path, rollout, dtype, trust_remote_code, **({"lora": lora} if lora else {})
        )
    name = next(name for name in ENGINES if _installed(name)) if kind == "auto" else kind
    if not _installed(name):
        raise UserError(
            f"rollout.engine: {name} is not installed; {ENGINES[name].install}, or set rollout.engine: transformers"
        )
    return resolve_name(ENGINES[name].class_path)(model_path, rollout, dtype, trust_remote_code, lora, sleeps)


def _installed(name: str) -> bool:
    package = ENGINES[name].package
    return package is None or find_spec(package) is not None
