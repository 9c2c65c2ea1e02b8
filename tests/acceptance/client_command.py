"""`tunery` as a client, in a directory of its own."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.support.samples import build_chat_file
from tests.terminal import InTerminal
from tests.wheel import install_wheel

COMMAND_S = 30

JOB_FILE = """\
model: tiny
training_file: train.jsonl
suffix: from-a-file
hyperparameters: {n_epochs: %d, batch_size: 4, lora_r: 8}
"""
ROWS = 48
LONG_ROWS, LONG_EPOCHS = 1200, 50
"""So many that a job lasts until it is cancelled, however fast the machine."""


class Client:
    """The installed command, in a directory that has a dataset and no other user's settings."""

    def __init__(self, place: Path, base_url: str) -> None:
        self.place = place
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(place),
            "TUNERY_BASE_URL": base_url,
        }
        (place / "train.jsonl").write_bytes(build_chat_file(ROWS))

    def write_job_file(self, *, epochs: int) -> None:
        (self.place / "job.yaml").write_text(JOB_FILE % epochs, "utf-8")

    def write_long_job_file(self) -> None:
        (self.place / "train.jsonl").write_bytes(build_chat_file(LONG_ROWS))
        self.write_job_file(epochs=LONG_EPOCHS)

    def run(
        self,
        *arguments: str,
        code: int = 0,
        piped: str | None = None,
        within_s: float = COMMAND_S,
        **variables: str,
    ) -> tuple[str, str]:
        """Run a command without a terminal. Returns standard output and standard error."""
        done = subprocess.run(
            [install_wheel() / "tunery", *arguments],
            cwd=self.place,
            env=self.environment | variables,
            input=piped,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout, done.stderr

    def read_json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json")[0])

    def in_terminal(self, *arguments: str) -> InTerminal:
        command = [install_wheel() / "tunery", *arguments]
        return InTerminal(command, cwd=self.place, environment=self.environment)
