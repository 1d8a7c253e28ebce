"""The base of every block of the configuration."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A block of YAML with known keys and types; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
