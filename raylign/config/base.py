"""The one base of every config class."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen, closed, and documented: the docstring under a field is its description in the JSON Schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
