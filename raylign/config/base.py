"""Base class of all config classes."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of all configs: immutable, without unknown keys; the docstring under a field is its JSON Schema description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
