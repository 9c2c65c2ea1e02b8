"""Reads what varies in a sweep: one request for a job for each of its points."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from app.core.errors import InvalidRequestError
from app.core.job.child.job_spec import MAX_SWEEP_JOBS
from app.schemas.bodies import nearest_field
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import AUTO, Hyperparameters
from app.schemas.sweeps import INCOMPARABLE, SweepCreate

_MAX_SHOWN = 80
"""Characters of a name or value that a message repeats."""


@dataclass(frozen=True, slots=True)
class Point:
    request: JobCreate
    places: Mapping[str, str]
    """Where the request has each hyperparameter that varies, by its name in a job: such as
    `sweep.grid.lora_r[1]`."""

    def describe(self) -> str:
        """The hyperparameters that vary, as a message names the point."""
        given = self.request.given_hyperparameters()
        return ", ".join(f"{name}={_shown(given.get(name, AUTO))}" for name in self.places)


def read_points(request: SweepCreate) -> list[Point]:
    """One request for each job of a sweep, in the order of the grid or of the list.

    Raises:
        InvalidRequestError: a hyperparameter does not exist, has an invalid value, is set elsewhere
            too or cannot vary, or there are too many jobs.
    """
    base = _Base(request)
    grid = request.sweep.grid
    if grid is None:
        points = enumerate(request.sweep.list_ or [])
        return [base.point(_placed_in_list(index, values)) for index, values in points]
    count = math.prod(map(len, grid.values()))
    if count > MAX_SWEEP_JOBS:
        sizes = " x ".join(str(len(values)) for values in grid.values())
        raise InvalidRequestError(
            f"The grid has {sizes} = {count:,} points, and a sweep has at most {MAX_SWEEP_JOBS} "
            "jobs. Give fewer values, or choose points and give them as 'sweep.list'.",
            code="too_many_jobs",
            param="sweep.grid",
        )
    placed = [list(_placed_in_grid(name, values)) for name, values in grid.items()]
    for value in (each for values in placed for each in values):
        base.point(dict([value]))  # names a wrong value before any combination
    return [base.point(dict(values)) for values in product(*placed)]


def _placed_in_grid(name: str, values: list[Any]) -> Iterator[tuple[str, tuple[Any, str]]]:
    for index, value in enumerate(values):
        yield name, (value, f"sweep.grid.{name[:_MAX_SHOWN]}[{index}]")


def _placed_in_list(index: int, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    place = f"sweep.list[{index}]"
    return {name: (value, f"{place}.{name[:_MAX_SHOWN]}") for name, value in values.items()}


class _Base:
    """What all jobs of a sweep have in common."""

    def __init__(self, request: SweepCreate) -> None:
        self._body = request.model_dump(mode="json", exclude_unset=True, exclude={"sweep"})
        self._fixed = _names(request)

    def point(self, values: Mapping[str, tuple[Any, str]]) -> Point:
        """The request for a job with these hyperparameters, each with its place in the body."""
        places: dict[str, str] = {}
        for name, (value, place) in values.items():
            if value is None:
                raise InvalidRequestError(
                    f"Invalid value for '{place}': null sets nothing. Give a value.", param=place
                )
            places |= dict.fromkeys(self._resolve(name, value, place), place)
        return Point(self._parse(values), places)

    def _resolve(self, name: str, value: Any, place: str) -> frozenset[str]:
        """The name in a job of a hyperparameter that has another one in the request."""
        varied = _names(self._parse({name: (value, place)})) - self._fixed
        if not varied:
            why = (
                "it means the default here. Give a value."
                if value == AUTO and name not in self._fixed
                else "the hyperparameters of the request set it, too. Give it in one place."
            )
            raise InvalidRequestError(f"'{place}' cannot vary: {why}", param=place)
        for each in varied & INCOMPARABLE.keys():
            raise InvalidRequestError(
                f"'{each}' cannot vary in a sweep, whose jobs are compared by validation loss: "
                f"{INCOMPARABLE[each]}. Give it in the hyperparameters of the request.",
                param=place,
            )
        return varied

    def _parse(self, values: Mapping[str, tuple[Any, str]]) -> JobCreate:
        """The request with these hyperparameters, which are in the method if it has one."""
        body = json.loads(json.dumps(self._body))
        place: dict[str, Any] = body
        if (method := body.get("method")) is not None:
            settings: dict[str, Any] = method.get(method["type"]) or {}
            place = method[method["type"]] = settings
        given = {name: value for name, (value, _) in values.items()}
        place["hyperparameters"] = (place.get("hyperparameters") or {}) | given
        try:
            return JobCreate.model_validate_json(json.dumps(body))
        except ValidationError as error:
            first = error.errors()[0]
            named = (str(each) for each in reversed(first["loc"]) if each in values)
            name = next(named, next(iter(values)))
            raise _refusal(name, values[name][1], first) from None


def _names(request: JobCreate) -> frozenset[str]:
    """Names of the hyperparameters that a request sets, also those that it leaves to a recipe."""
    return frozenset(request.given_hyperparameters()) | request.auto_hyperparameters()


def _refusal(name: str, place: str, error: Mapping[str, Any]) -> InvalidRequestError:
    if error["type"] != "extra_forbidden":
        return InvalidRequestError(f"Invalid value for '{place}': {error['msg']}.", param=place)
    nearest = nearest_field(Hyperparameters, (), name)
    hint = f" Did you mean '{nearest}'?" if nearest not in (None, name) else ""
    message = f"'{place}' is given twice, under two names. Keep one."
    if nearest != name:
        message = f"Unknown parameter: '{place}'.{hint}"
    return InvalidRequestError(message, code="unknown_parameter", param=place)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:_MAX_SHOWN]
