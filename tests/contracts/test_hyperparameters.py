"""`docs/api.md` lists every hyperparameter with its default, `docs/recipes.md` those of `auto`."""

import json
import re
from typing import Any

import pytest

from app.core.job import recipes
from app.core.job.lora_shape import LoraShape
from app.core.job.training_config import DpoSettings, TrainingConfig
from app.schemas.hyperparameters import (
    DEFAULT_LEARNING_RATES,
    LORA_WIRE_NAMES,
    SUPERVISED_NAMES,
    WIRE_NAMES,
    ComputedHyperparameters,
    DpoHyperparameters,
    Hyperparameters,
)
from tests.contracts.test_documented import PROJECT, read_table

TOLD_IN_PROSE = {"packing"}
"""Not in the table, because it can have only one value."""

DEFAULTS_OF_COMPUTED: dict[str, Any] = {
    "learning_rate_multiplier": 1,
    "gradient_accumulation_steps": None,
    "lora_target_modules": list(LoraShape().target_modules),
}
"""Defaults of the hyperparameters that are not simply a field of `TrainingConfig`."""

COMPUTED = {"none", "`best` with early stopping, otherwise `final`", "date of creation, in UTC"}
"""Words for a default of null, and for what the service computes in its place."""


def documented() -> dict[str, Any]:
    """The default of each hyperparameter in the table, by name."""
    rows = read_table((PROJECT / "docs" / "api.md").read_text("utf-8"), "Jobs")
    found: dict[str, Any] = {}
    for first, *cells in rows:
        names = re.findall(r"`(\w+)`", first.partition("(")[0])
        if names and names[0] in Hyperparameters.model_fields:
            values = cells[0].split(", ") if len(names) > 1 else [cells[0]]
            found |= dict(zip(names, map(parse, values), strict=True))
    return found


def parse(cell: str) -> Any:
    """The value that a cell stands for."""
    if cell in COMPUTED:
        return None
    text = cell.strip("`")
    return json.loads(text) if re.match(r"[\d\[]|true|false", text) else text


def test_the_table_of_the_api_has_every_hyperparameter_with_its_default() -> None:
    fields = {wire: TrainingConfig.model_fields[name] for wire, name in WIRE_NAMES.items()}
    fields |= {wire: LoraShape.model_fields[name] for wire, name in LORA_WIRE_NAMES.items()}
    defaults = {wire: field.default for wire, field in fields.items()} | DEFAULTS_OF_COMPUTED
    defaults["modules_to_save"] = [*defaults["modules_to_save"]]

    assert documented() == defaults
    assert defaults.keys() | TOLD_IN_PROSE == Hyperparameters.model_fields.keys()
    assert DEFAULTS_OF_COMPUTED.keys() | TOLD_IN_PROSE == set(ComputedHyperparameters.model_fields)


def test_the_table_of_preference_tuning_has_its_hyperparameters_with_their_defaults() -> None:
    rows = read_table((PROJECT / "docs" / "api.md").read_text("utf-8"), "Preference tuning")

    found = {first.strip("`"): parse(default) for first, default, *_ in rows}
    expected = {name: field.default for name, field in DpoSettings.model_fields.items()}
    assert found == expected | {"learning_rate": DEFAULT_LEARNING_RATES["dpo"]}
    common = Hyperparameters.model_fields.keys() - {*SUPERVISED_NAMES}
    assert DpoHyperparameters.model_fields.keys() == common | expected.keys()


def read_number(cell: str) -> float:
    """The number in a cell such as `0.5 billion`."""
    text = cell.strip("`")
    for word, digits in ((",", ""), (" million", "e6"), (" billion", "e9"), ("any", "inf")):
        text = text.replace(word, digits)
    return float(text)


@pytest.mark.parametrize(
    ("heading", "choices"),
    [
        ("Learning rate", recipes.LEARNING_RATES),
        ("Rank", recipes.RANKS),
        ("Epochs", recipes.EPOCHS),
    ],
)
def test_the_page_of_the_recipe_has_the_tables_of_the_code(
    heading: str, choices: tuple[recipes.Choice, ...]
) -> None:
    rows = read_table((PROJECT / "docs" / "recipes.md").read_text("utf-8"), heading)

    assert choices == tuple(
        recipes.Choice(read_number(below), float(value), basis) for below, value, basis in rows
    )
