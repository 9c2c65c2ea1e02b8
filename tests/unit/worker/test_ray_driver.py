"""What the process that speaks with Ray asks of nodes. Ray is a stand-in here."""

from typing import Any

import pytest

from tests.cluster.ray_cluster import require_ray

NODE = "00" * 28


class Probe:
    """Stands in for a function that runs on a node, and counts how often it does."""

    count = 0

    def options(self, **_: object) -> "Probe":
        return self

    def remote(self, *_: object) -> str:
        self.count += 1
        return "reference"


def test_an_idle_node_is_not_asked_again_before_a_job_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_ray()
    from worker.dispatch import ray_driver as module  # noqa: PLC0415 - where there is Ray

    probe = Probe()
    node = {"NodeID": NODE, "Alive": True, "Resources": {"CPU": 1.0}, "NodeManagerAddress": "a"}
    answers: dict[str, Any] = {
        "nodes": lambda: [node],
        "wait": lambda references, **_: (references, []),
        "get": lambda _: "{}",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(module.ray, name, answer)
    monkeypatch.setattr(module, "available_resources_per_node", lambda: {NODE: {"CPU": 1.0}})
    monkeypatch.setattr(module, "request_resources", lambda **_: None)
    monkeypatch.setattr(module, "PROBE_S", 0.0)
    driver = module.Driver("module")
    monkeypatch.setattr(driver, "_probe", probe)

    def look(times: int) -> list[str | None]:
        return [driver.nodes()[0]["ability"] for _ in range(times)]

    assert look(4) == [None, "{}", "{}", "{}"]
    assert probe.count == 1
    driver.demand([{"CPU": 1.0}])
    look(1)
    assert probe.count == 2
    driver.demand([])
    assert look(4) == ["{}"] * 4
    assert probe.count == 2
