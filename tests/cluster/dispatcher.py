"""`python -m tests.cluster.dispatcher`: the real worker, for nodes with `tests.cluster.node`."""

import sys

from tests.chaos.worker import let_children_lock
from worker.__main__ import main

if __name__ == "__main__":
    let_children_lock()
    sys.exit(main("tests.chaos.stand_in_trainer", "tests.cluster.node"))
