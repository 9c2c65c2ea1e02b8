"""What the operator may write in TUNERY_SAMPLING_ENGINES."""

import re
from fnmatch import fnmatchcase
from typing import Self

from pydantic import (
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from app.core.job.frozen import Frozen

_WILDCARDS = frozenset("*?[")
_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")


class Engine(Frozen):
    """An engine with OpenAI's API, such as vLLM, which answers for some models."""

    models: str = Field(min_length=1)
    """Name of a model as clients write it, or a pattern such as `ft:*`."""
    url: str
    """Base URL, which usually ends in `/v1`."""
    key: SecretStr = SecretStr("")
    """API key of the engine. Empty sends none."""
    name: str | None = Field(default=None, min_length=1)
    """Name of the model as the engine knows it. None if that is the name that clients write."""
    cache_salt: bool = True
    """Whether requests have the id of their project as `cache_salt`, by which vLLM keeps apart what
    it has read for projects. False for an engine that refuses parameters it does not know."""

    @field_validator("url")
    @classmethod
    def _must_be_base_url(cls, url: str) -> str:
        if not _URL.fullmatch(url):
            raise ValueError("give a base URL such as http://127.0.0.1:8080/v1")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _must_name_one_model(self) -> Self:
        if self.name is not None and self.is_pattern:
            raise ValueError(
                "a pattern with a name would answer for different models with one; leave the name "
                "out, or give each model an entry"
            )
        return self

    @property
    def is_pattern(self) -> bool:
        """Whether it answers for all models whose names are of one form."""
        return not _WILDCARDS.isdisjoint(self.models)

    def answers_for(self, model: str) -> bool:
        return fnmatchcase(model, self.models)


_ENGINES = TypeAdapter(tuple[Engine, ...])


def parse_engines(text: str) -> tuple[Engine, ...]:
    """Parse a list of engines in JSON. An empty text has none.

    Raises:
        ValueError: it is no such list. The message does not repeat a key.
    """
    try:
        return _ENGINES.validate_json(text) if text else ()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        what = f"{place}: {first['msg']}" if place else first["msg"]
        raise ValueError(
            'it must be a list in JSON such as [{"models": "ft:*", "url": '
            f'"http://127.0.0.1:8080/v1"}}]; {what}'
        ) from None
