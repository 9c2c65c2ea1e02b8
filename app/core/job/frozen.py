"""The base class of data that crosses a process or is stored: checked when read, never changed."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Data that is checked when it is read and never changed afterwards."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
