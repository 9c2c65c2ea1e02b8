"""Puts the process together that answers requests: four threads that meet at the desk."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial

from transformers.utils import logging as transformers_logging

from worker.sampling.serving.decode_loop import DecodeLoop
from worker.sampling.serving.desk import Desk
from worker.sampling.serving.options import ALIVE, READY, ServingOptions
from worker.sampling.serving.preparing import Preparer
from worker.sampling.serving.server import Server
from worker.sampling.serving.shelf import Shelf

logger = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.001
"""Time after which the thread that decodes lets the others run, instead of Python's 5 ms. That of
the sockets waits this long several times in a request."""


def serve(listener: int, control: int, options: ServingOptions) -> None:
    """Answer requests until the keeper is gone."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    transformers_logging.disable_progress_bar()
    desk = Desk(queue=options.queue, mode=options.mode)
    shelf = Shelf(options)
    threads = (
        Preparer(desk, shelf, loads=False),
        Preparer(desk, shelf, loads=True),
        DecodeLoop(desk, shelf, threads=options.threads),
    )
    for each in threads:
        threading.Thread(target=_end_process_with, args=(each.run,), daemon=True).start()
    server = Server(
        socket.socket(fileno=listener),
        control,
        desk,
        queue=options.queue,
        pulses=[each.pulse for each in threads],
        say_alive=partial(_tell_keeper, ALIVE),
    )
    _tell_keeper(READY)
    server.run()


def _tell_keeper(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _end_process_with(work: Callable[[], None]) -> None:
    """Run a thread without which the process is of no use: the keeper starts another one."""
    try:
        work()
    except BaseException:
        logger.exception("the sampler fails")
        os._exit(1)
