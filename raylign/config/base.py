"""Base class of all config classes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Config(BaseModel):
    """Base of all configs: immutable, without unknown keys; the docstring under a field is its JSON Schema description.

    A section that is given in part is completed by the defaults of the class that contains it: of
    `optimizer: {weight_decay: 0.1}` in DPO, the learning rate is DPO's and not the optimizer's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _complete_sections(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        # A section whose class is chosen by a key of its own (`type`, `name`) has nothing in common with the default.
        sections = {
            name: field.default
            for name, field in cls.model_fields.items()
            if name in values and isinstance(field.default, Config) and field.annotation is type(field.default)
        }
        return values | {name: _completed(default, values[name]) for name, default in sections.items()}


def _completed(default: Config, given: Any) -> Any:
    """Return a section with the values that were given, and the defaults of its place for all others."""
    if isinstance(given, dict):
        return _merged(default.model_dump(), given)
    if type(given) is type(default):
        changes = {name: getattr(given, name) for name in given.model_fields_set}
        for name, value in changes.items():
            changes[name] = _completed(getattr(default, name), value) if isinstance(value, Config) else value
        return default.model_copy(update=changes)
    return given


def _merged(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    return default | {
        key: _merged(default[key], value) if isinstance(value, dict) and isinstance(default.get(key), dict) else value
        for key, value in given.items()
    }
