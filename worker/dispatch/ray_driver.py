"""`python -m worker.dispatch.ray_driver ADDRESS NODE_MODULE`: speaks with Ray for a dispatcher.

It reads requests from its standard input, one JSON object a line, and answers each with a line. It
is a process of its own because the libraries of Ray end their process when the head is lost for a
minute, and abort it when another head answers at the same address.
"""

# pyright: standard
# Ray's own types are incomplete.

import contextlib
import importlib
import json
import logging
import os
import sys
import threading
import time
from typing import Any

import ray
from ray._private.state import actors, available_resources_per_node
from ray.actor import exit_actor
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ActorAlreadyExistsError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.core.machine.linux import die_with_parent

NAMESPACE = "tunery"
PROBE_S = 300.0
"""Interval at which a node is asked again what it can do, in seconds."""

PROBE_AGAIN_S = 30.0
"""Interval at which a node is asked again that could not be used, in seconds."""

EXIT_S = 10.0
"""Time in which Ray must have ended the process of an attempt that has ended, in seconds."""


# This module is `__main__` here, so Ray sends what follows to the nodes as code, not as a name:
# nodes find `tunery` if it is installed, and the rest through it.
def describe_node(module: str) -> str:
    """What jobs can have on the node where this runs, as JSON."""
    importlib.import_module("tunery").make_importable()
    return importlib.import_module(module).describe()


class AttemptActor:
    """One attempt at one job, on the node where Ray has placed it."""

    def __init__(self, module: str, ticket: str, name: str) -> None:
        # All that starts the attempt is in here: a dispatcher that dies now has nothing more to do.
        importlib.import_module("tunery").make_importable()
        self._name = name
        self._attempt = importlib.import_module(module).start(ticket, self._exit)

    def save_and_stop(self) -> None:
        self._attempt.save_and_stop()

    def exit(self) -> None:
        exit_actor()

    def _exit(self) -> None:
        """End this process, from the thread of the attempt."""
        last_resort = threading.Timer(EXIT_S, os._exit, [0])  # there may be no head to be asked
        last_resort.daemon = True
        last_resort.start()
        ray.get_actor(self._name, namespace=NAMESPACE).exit.remote()


class Driver:
    """What a dispatcher may ask of Ray. Each method answers one kind of request."""

    def __init__(self, node_module: str) -> None:
        self._node_module = node_module
        self._probe: Any = ray.remote(num_cpus=0, max_retries=0)(describe_node)
        self._actor: Any = ray.remote(max_restarts=0, max_task_retries=0)(AttemptActor)
        self._probes: dict[str, ray.ObjectRef[str]] = {}
        self._found: dict[str, dict[str, Any]] = {}
        self._probe_at_s: dict[str, float] = {}
        self._is_demanded = False

    def session(self) -> str:
        """Name of the cluster since its head was started."""
        return ray.get_runtime_context().get_session_name()

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that live and have processors, with what is free on each."""
        free = available_resources_per_node()
        alive = {
            node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"]
        }
        for known in (self._probes, self._found, self._probe_at_s):
            for node_id in known.keys() - alive.keys():
                del known[node_id]
        return [
            {
                "id": node_id,
                "address": node["NodeManagerAddress"],
                "cpus": int(free.get(node_id, {}).get("CPU", 0)),
                "memory_bytes": int(free.get(node_id, {}).get("memory", 0)),
                "gpus": int(free.get(node_id, {}).get("GPU", 0)),
                **self._ask_node(node_id),
            }
            for node_id, node in alive.items()
            if node["Resources"].get("CPU", 0) >= 1
        ]

    def launch(
        self, name: str, node: str, ticket: str, *, cpus: int, memory_bytes: int, gpus: int
    ) -> str | None:
        """Start an actor, and return its id. None if there is one of this name.

        It dies if there is no room, as when another dispatcher has just taken it.
        """
        options = {
            "name": name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "num_cpus": cpus,
            "num_gpus": gpus,
            "memory": memory_bytes,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(
                node, soft=False, _fail_on_unavailable=True
            ),
        }
        try:
            actor = self._actor.options(**options).remote(self._node_module, ticket, name)
        except ActorAlreadyExistsError:
            return None
        return actor._actor_id.hex()  # noqa: SLF001 - what `actors` is asked with

    def check(self, actor_id: str) -> dict[str, str]:
        """State of an actor, as Ray calls it, and why it died. Empty if the head knows none."""
        found = actors(actor_id)
        if not found:
            return {"state": "", "why": ""}
        return {"state": found["State"], "why": _cause_of(found["DeathCause"])}

    def save_and_stop(self, name: str) -> None:
        """Ask the actor to save its attempt and end, if there is one of this name."""
        with contextlib.suppress(ValueError):
            ray.get_actor(name, namespace=NAMESPACE).save_and_stop.remote()

    def kill(self, name: str) -> None:
        """End the actor and free its place, also if it still waits for one."""
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)

    def demand(self, bundles: list[dict[str, float]]) -> None:
        """Tell the autoscaler how large the cluster must be, until it is told otherwise."""
        request_resources(bundles=bundles)
        self._is_demanded = bool(bundles)

    def _ask_node(self, node_id: str) -> dict[str, Any]:
        """What the node says of itself. A new node is asked, and answers some seconds later.

        It is asked again only while jobs wait: Ray takes a node that is asked for a busy one, and
        would never stop it.
        """
        now_s = time.monotonic()
        is_due = self._is_demanded or node_id not in self._found
        if node_id in self._probes and ray.wait([self._probes[node_id]], timeout=0)[0]:
            self._found[node_id] = _result_of(self._probes.pop(node_id))
            is_usable = not self._found[node_id]["problem"]
            self._probe_at_s[node_id] = now_s + (PROBE_S if is_usable else PROBE_AGAIN_S)
        elif is_due and node_id not in self._probes and now_s >= self._probe_at_s.get(node_id, 0):
            here = NodeAffinitySchedulingStrategy(node_id, soft=False)
            probe = self._probe.options(scheduling_strategy=here)
            self._probes[node_id] = probe.remote(self._node_module)
        return self._found.get(node_id, {"ability": None, "problem": ""})


def _result_of(probe: "ray.ObjectRef[str]") -> dict[str, Any]:
    try:
        return {"ability": ray.get(probe), "problem": ""}
    except RayError as error:
        return {"ability": None, "problem": _last_line(error)}


def _cause_of(death: Any) -> str:
    """Why an actor died, in one line, from Ray's protocol buffer."""
    kind = death.WhichOneof("context")
    context = getattr(death, kind) if kind else None
    told = ("error_message", "formatted_exception_string", "fail_reason")
    texts = [str(getattr(context, name)) for name in told if hasattr(context, name)]
    return _last_line("".join(texts) or str(kind or ""))


def _last_line(error: Exception | str) -> str:
    """The error itself. The lines before it are tracebacks of other processes."""
    return str(error).strip().rpartition("\n")[2][:500]


def main(address: str, node_module: str) -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # Ray prints what it likes
    die_with_parent(answers.fileno())

    def answer(**values: object) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        answer(error=_last_line(error))
        return 1
    driver = Driver(node_module)
    answer(result=driver.session())
    for line in sys.stdin:
        request = json.loads(line)
        call = getattr(driver, request.pop("call"))
        try:
            answer(result=call(**request))
        except Exception as error:  # whatever it is, the dispatcher waits for a line
            answer(error=f"{type(error).__name__}: {_last_line(error)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
