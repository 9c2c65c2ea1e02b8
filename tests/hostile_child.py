"""`python -m tests.hostile_child DIR`: a training child that attacks its worker.

The rows of its training file name the attack, and then what the attack needs.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from app.core.job.child.training_events import (
    Checkpointed,
    Finished,
    Noted,
    Started,
    Stepped,
    Stopped,
    TrainingEvent,
)
from tests.builders import build_metrics, write_checkpoint

MIB = 1024 * 1024
CHECKPOINT = "out/step-1"


def main(directory: Path) -> None:
    rows = (directory / "train.jsonl").read_text().splitlines()
    attack, *arguments = (json.loads(row)["text"] for row in rows)
    ATTACKS[attack](directory, *arguments)


def say(*events: TrainingEvent) -> None:
    for event in events:
        print(event.model_dump_json())  # noqa: T201 - what it is for
    sys.stdout.flush()


def take_step() -> None:
    say(Started(total_steps=1), Stepped(metrics=build_metrics(1)))


def publish(directory: Path, spoil: Callable[[Path], object]) -> None:
    """Report a checkpoint that is spoiled like this, and wait for the end."""
    take_step()
    write_checkpoint(directory, 1)
    spoil(directory / CHECKPOINT)
    say(Checkpointed(step=1, directory=CHECKPOINT))
    signal.pause()


def succeed(directory: Path) -> None:
    take_step()
    write_checkpoint(directory, 1)
    say(Checkpointed(step=1, directory=CHECKPOINT), Finished(step=1, trained_tokens=1))


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink(missing_ok=True)
    make(path)


def link_manifest(directory: Path, target: str) -> None:
    publish(
        directory,
        lambda made: replace(made / "manifest.json", lambda path: path.symlink_to(target)),
    )


def link_log(directory: Path, target: str) -> None:
    replace(directory / "train.log", lambda path: path.symlink_to(target))
    sys.exit(1)


def link_result(directory: Path, target: str) -> None:
    (directory / "step_metrics.csv").symlink_to(target)
    succeed(directory)


def link_output(directory: Path, target: str) -> None:
    def swap(_checkpoint: Path) -> None:
        out = directory / "out"
        out.rename(directory / "elsewhere")
        out.symlink_to(target)

    publish(directory, swap)


def steal_by_hard_link(directory: Path, target: str) -> None:
    publish(
        directory,
        lambda made: replace(made / "README.md", lambda path: os.link(target, path)),
    )


def pipe_as(name: str) -> Callable[[Path], None]:
    return lambda directory: publish(directory, lambda made: replace(made / name, os.mkfifo))


def make_sparse(directory: Path) -> None:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, 3 * 1024 * MIB)

    publish(directory, lambda made: make(made / "README.md"))


def escape(directory: Path) -> None:
    """Leave a process in another session that keeps both pipes open."""
    holding = [sys.executable, "-c", "import signal; signal.alarm(30); signal.pause()"]
    subprocess.Popen(holding, start_new_session=True)
    succeed(directory)


def crash(directory: Path) -> None:
    raise RuntimeError(f"{directory} is broken")


def fill_log(_directory: Path, mebibytes: str) -> None:
    for _ in range(int(mebibytes)):
        os.write(sys.stderr.fileno(), b"x" * MIB)
    sys.exit(1)


def flood_with_notes(_directory: Path) -> None:
    for _ in range(37_000):
        say(Noted(message="x" * 2000))


def flood_with_steps(_directory: Path, total: str = "1") -> None:
    say(Started(total_steps=int(total)))
    for step in range(1, 372_000):
        say(Stepped(metrics=build_metrics(step)))


def write(text: str) -> Callable[[Path], None]:
    def attack(_directory: Path) -> None:
        say(Started(total_steps=1))
        print(text, flush=True)  # noqa: T201 - what it is for
        signal.pause()

    return attack


def step_line(step: int) -> str:
    metrics = build_metrics().model_dump() | {"step": step}
    return json.dumps({"kind": "stepped", "metrics": metrics})


def fail(_directory: Path) -> None:
    problem = {"line": 1, "path": "p" * 400, "code": "c", "message": "\0\x1b" * 100}
    event = {"kind": "failed", "code": "c", "message": "m\0" * 2000, "errors": [problem] * 50}
    print(json.dumps(event), flush=True)  # noqa: T201 - what it is for


def stop_unasked(_directory: Path) -> None:
    say(Started(total_steps=1), Stopped(step=0))


def freeze(_directory: Path) -> None:
    say(Started(total_steps=1))
    os.kill(os.getpid(), signal.SIGSTOP)


ATTACKS: dict[str, Callable[..., None]] = {
    "link manifest": link_manifest,
    "link log": link_log,
    "link result": link_result,
    "link output": link_output,
    "hard link": steal_by_hard_link,
    "pipe as weights": pipe_as("adapter_model.safetensors"),
    "pipe as manifest": pipe_as("manifest.json"),
    "sparse": make_sparse,
    "escape": escape,
    "crash": crash,
    "fill log": fill_log,
    "flood with notes": flood_with_notes,
    "flood with steps": flood_with_steps,
    "step 0": write(step_line(0)),
    "step 2**70": write(step_line(2**70)),
    "no event": write("hello"),
    "not a number": write(step_line(1).replace("1.5", "NaN")),
    "large line": write("[" * MIB),
    "fail": fail,
    "stop": stop_unasked,
    "freeze": freeze,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
