"""Every operation of the OpenAPI document, and requests that each of them accepts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.contracts.test_envelopes import BODIES

DOCUMENT = json.loads((Path(__file__).parents[2] / "openapi.json").read_bytes())


ANY_KEY = "any key"


class Operation(NamedTuple):
    method: str
    path: str
    scope: str | None
    """The scope that it needs; `ANY_KEY` for one that every key may use, None for an open one."""
    description: dict[str, Any]
    """As in the OpenAPI document."""

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    def url(self, ids: Mapping[str, str]) -> str:
        """Its path with these ids. An unknown kind of id is an error."""
        return re.sub(r"\{(\w+)\}", lambda match: ids[match[1]], self.path)

    def body(self, **fields: Any) -> dict[str, Any]:
        """A valid body, as options of a client; `fields` change those of a JSON body."""
        options = dict(BODIES.get(self.path, {}))
        if "json" in options or (fields and not options):
            options["json"] = options.get("json", {}) | fields
        return options


def _scope_of(operation: dict[str, Any]) -> str | None:
    security = operation.get("security")
    if security is None:
        return None
    (scopes,) = [scopes for each in security for scopes in each.values()]
    (scope,) = scopes or [ANY_KEY]
    return scope


OPERATIONS = [
    Operation(method.upper(), path, _scope_of(operation), operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
CLOSED = [operation for operation in OPERATIONS if operation.scope is not None]
