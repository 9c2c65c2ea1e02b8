"""Whether another worker of this machine still lives."""

import os
import subprocess
import sys
from dataclasses import replace

from worker.launch.locks import start_ticks
from worker.presence import is_alive, this_host, this_worker


def test_a_worker_sees_that_it_lives() -> None:
    worker = this_worker("worker-1")

    assert (worker.worker_id, worker.pid, worker.host) == ("worker-1", os.getpid(), this_host())
    assert worker.process_started > 0
    assert is_alive(worker)


def test_a_process_that_has_ended_is_not_alive_even_before_it_is_buried() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    worker = replace(this_worker("worker-1"), pid=child.pid, process_started=0)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert not is_alive(worker)
    child.wait()
    assert start_ticks(child.pid) is None


def test_another_process_with_the_same_id_is_another_worker() -> None:
    worker = this_worker("worker-1")

    assert not is_alive(replace(worker, process_started=worker.process_started - 1))
