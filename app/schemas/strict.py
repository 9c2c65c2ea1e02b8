"""What all request bodies share: nothing is guessed, converted or ignored."""

from difflib import get_close_matches
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict


class RequestBody(BaseModel):
    """A JSON object whose fields are of exactly the types they are documented with."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def nearest_field(annotation: Any, path: tuple[Any, ...], name: str) -> str | None:
    """The field that looks most like `name`, of the object at `path` within a body of this type."""
    model = _model_in(annotation)
    for part in path:
        field = model and model.model_fields.get(str(part))
        model = None if field is None else _model_in(field.annotation)
    return None if model is None else next(iter(get_close_matches(name, _names(model), n=1)), None)


def _names(model: type[BaseModel]) -> list[str]:
    names = [field.alias or name for name, field in model.model_fields.items()]
    for field in model.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names += [str(choice) for choice in field.validation_alias.choices]
    return names


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model | None`."""
    candidates = getattr(annotation, "__args__", (annotation,))
    return next(
        (one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None
    )
