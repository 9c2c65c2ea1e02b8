"""The real module of a Ray node, with a child that learns nothing, but fast."""

from collections.abc import Callable

from tests.chaos.worker import let_children_lock
from worker.dispatch import node

describe = node.describe


def start(ticket: str, ended: Callable[[], None]) -> node.NodeAttempt:
    let_children_lock()
    return node.start(ticket, ended, "tests.chaos.stand_in_trainer")
