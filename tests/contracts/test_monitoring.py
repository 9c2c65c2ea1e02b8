"""The alerts, the dashboard and the page about them name the metrics that there are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.db.session import Database
from app.core.settings import Settings
from app.maintenance.metrics import serving_metrics
from tests.contracts.test_documented import read_table

DOCS = Path(__file__).parents[2] / "docs"
METRIC = re.compile(r"\b(?:tunery|process)_[a-z0-9_]+")
WORDS = re.compile(r"\{[^}]*\}|\"[^\"]*\"")
"""Labels and texts of an expression: they name no metric."""


@pytest.fixture
def offered(app: FastAPI, client: TestClient, settings: Settings, database: Database) -> set[str]:
    """The name of every sample that Prometheus reads."""
    client.post("/v1/fine_tuning/jobs", json={})
    registry = app.state.metrics.registry
    served = settings.model_copy(update={"metrics_port": 0})
    with serving_metrics(registry, served, database):
        families = [*registry.collect()]
    return {sample.name for family in families for sample in family.samples} | {
        family.name for family in families
    }


def expressions_in(node: Any) -> list[str]:
    """Every `expr` of a file, however deep."""
    match node:
        case dict():
            own = [node["expr"]] if "expr" in node else []
            return own + [found for each in node.values() for found in expressions_in(each)]
        case list():
            return [found for each in node for found in expressions_in(each)]
        case _:
            return []


@pytest.mark.only_sqlite
@pytest.mark.parametrize("name", ["alerts.yml", "dashboard.json"])
def test_every_expression_names_metrics_that_there_are(name: str, offered: set[str]) -> None:
    text = (DOCS / "monitoring" / name).read_text("utf-8")
    expressions = expressions_in(
        yaml.safe_load(text) if name.endswith(".yml") else json.loads(text)
    )

    named = {found for each in expressions for found in METRIC.findall(WORDS.sub("", each))}
    assert len(expressions) >= 10
    assert named <= offered, named - offered


def test_every_alert_says_what_is_wrong() -> None:
    rules = yaml.safe_load((DOCS / "monitoring" / "alerts.yml").read_text("utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]

    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"].endswith(".")


def test_every_panel_of_the_dashboard_has_a_place_of_its_own() -> None:
    panels = json.loads((DOCS / "monitoring" / "dashboard.json").read_text("utf-8"))["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]

    assert len(set(places)) == len(places) == len({panel["id"] for panel in panels})


@pytest.mark.only_sqlite
def test_every_metric_is_explained_and_no_other(offered: set[str]) -> None:
    rows = read_table((DOCS / "monitoring.md").read_text("utf-8"), "Metrics")
    explained = {row[0].strip("`") for row in rows} - {"process_..."}
    ours = {name for name in offered if name.startswith("tunery_")}
    suffixes = ("_bucket", "_count", "_sum", "_created")

    whole = {name for name in ours if not name.endswith(suffixes)}
    assert explained - whole == set()
    families = {name.removesuffix("_total") for name in whole}
    assert whole - explained <= families, "the name of a family without _total"
