"""A worker that runs one hostile training process, and prints what came of its attempts.

    python -m tests.escapes.worker LAUNCHER MODE DIRECTORY [USER]

LAUNCHER is `cold` or `warm`. MODE is `all`, `core` for the layers that need no privilege, or `off`.
With USER, it gives up root first, and all capabilities with it.
"""

import dataclasses
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from app.core.job.child.job_spec import BASE_MODEL_NAME, MACHINE_CACHE_NAME, PROJECT_CACHE_NAME
from app.core.machine.linux import refuse_tracing, unshare
from app.core.machine.subprocesses import ROOT
from app.core.storage.privacy import keep_new_files_private
from tests.escapes.targets import RESULTS_NAME, TARGETS_NAME, Targets
from tests.fakes import Watch
from worker.launch.launcher import Signal
from worker.launch.locks import try_lock
from worker.launch.sandbox.limits import available_memory
from worker.launch.sandbox.privileges import give_up_privileges
from worker.launch.sandbox.sandbox import Sandbox, make_sandbox
from worker.launch.sandbox.view import hide_all_but
from worker.launch.supervision import LocalLauncher
from worker.launch.warm import WarmLauncher

MODULE = "tests.escapes.attempts"
DIES_WITHIN_S = 5.0
"""Longest time that a killed process may take to die; generous, as machines that test are busy."""

ABSTRACT_SOCKET = "tunery-test-{}"


def become(user: int, directory: Path) -> None:
    """Give up root, and open the way to Python and the test's directory before, for this alone."""
    unshare(0x00020000)
    nothing = directory / "nothing"
    nothing.mkdir()
    needed = [ROOT, Path(sys.prefix), Path(sys.base_prefix), directory]
    os.chown(directory, user, user)
    hide_all_but(needed, nothing, from_others=True)
    give_up_privileges(user)


def build(data_dir: Path, port: int) -> tuple[Path, Targets]:
    """Make a data directory with a job in it, and all that it must not reach."""
    job = data_dir / "work" / "ftjob-1" / "attempt-1"
    files = {
        "database": data_dir / "tunery.db",
        "blob": data_dir / "blobs" / "blob",
        "signing_key": data_dir / "signing" / "key.pem",
        "base_model": data_dir / "models" / "tiny" / "model.safetensors",
        "other_job": data_dir / "work" / "ftjob-2" / "attempt-1" / "train.jsonl",
        "machine_cache": data_dir / "cache" / "machine" / "processor.json",
        "other_cache": data_dir / "cache" / "projects" / "other" / str(os.geteuid()) / "code.so",
        "job_lock": data_dir / "work" / "ftjob-1.lock",
    }
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    job.mkdir(parents=True)
    cache = data_dir / "cache" / "projects" / "own"
    cache.mkdir()
    (job / BASE_MODEL_NAME).symlink_to(files["base_model"].parent)
    (job / MACHINE_CACHE_NAME).symlink_to(files["machine_cache"].parent)
    (job / PROJECT_CACHE_NAME).symlink_to(cache)
    targets = Targets(
        worker=os.getpid(),
        api_port=port,
        abstract_socket=ABSTRACT_SOCKET.format(os.getpid()),
        code=ROOT / "worker",
        libraries=Path(json.__file__).parent,
        memory_bytes=available_memory() * 5 // 4,
        **files,
    )
    (job / TARGETS_NAME).write_text(targets.model_dump_json())
    return job, targets


def run(kind: str, sandbox: Sandbox, job: Path) -> None:
    watch = Watch(on_event=lambda _: None, requested_signal=lambda: Signal.CONTINUE)
    if kind == "cold":
        ending = LocalLauncher(MODULE, sandbox=sandbox).run(job, watch)
    else:
        launcher = WarmLauncher(MODULE, idle_s=60, sandbox=sandbox)
        ending = launcher.run(job, watch)
        assert launcher._failures == 0
        launcher.close()
    assert ending.exit_code == 0, ending.log_tail


def end_of_daemon(lock: Path, within_s: float) -> str | None:
    """How the process ended that was left behind; None if it has not, and had to be killed."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if try_lock(lock) is not None:
            return "it has ended"
        time.sleep(0.05)
    os.kill(int(lock.read_text()), signal.SIGKILL)
    return None


def main(kind: str, mode: str, directory: Path, user: int | None) -> None:
    if user is not None:
        become(user, directory)
    refuse_tracing()
    keep_new_files_private()
    data_dir = directory / "data"
    data_dir.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as api, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + ABSTRACT_SOCKET.format(os.getpid()))
        abstract.listen()
        job, _ = build(data_dir, api.getsockname()[1])
        (job / "leave a daemon").touch()
        sandbox = make_sandbox(
            "off" if mode == "off" else "required",
            data_dir=data_dir,
            locks_dir=data_dir / "workers",
            threads=2,
        )
        if mode == "core":
            core = [layer for layer in sandbox.layers if layer.is_core]
            sandbox = dataclasses.replace(sandbox, layers=core)
        run(kind, sandbox, job)
    results = json.loads((job / RESULTS_NAME).read_bytes())
    within_s = DIES_WITHIN_S if sandbox.layers else 0.5
    results["leave a process behind"] = end_of_daemon(job / "daemon.lock", within_s)
    layers = {layer.kind: layer.missing for layer in sandbox.layers}
    sys.stdout.write(json.dumps({"attempts": results, "layers": layers, "user": os.geteuid()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]) if sys.argv[4:] else None)
