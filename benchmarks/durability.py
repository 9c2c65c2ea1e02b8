"""What durability costs the training. What it costs the queue is in benchmarks/api.py.

    python benchmarks/durability.py training      # about 5 minutes, on a quiet machine

`training` runs the real child on the 135M model, in turn with and without time-based states, and
compares the time of the whole loop, and says what one state costs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.core.job.child.job_spec import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    OUTPUT_NAME,
    TRAINING_DATA_NAME,
    BaseModelRef,
    DatasetRef,
    JobSpec,
)
from app.core.job.training_config import TrainingConfig
from benchmarks.support.samples import build_chat_file


def train(model: Path, *, save_interval_s: float, steps: int, threads: int) -> dict[str, float]:
    """Run one job in the real child. Returns seconds from the first step to the last, and more."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / OUTPUT_NAME).mkdir()
        (directory / TRAINING_DATA_NAME).write_bytes(build_chat_file(200))
        (directory / BASE_MODEL_NAME).symlink_to(model.resolve())
        spec = JobSpec(
            job_id="ftjob-1",
            attempt=1,
            fine_tuned_model="ft:x",
            base_model=BaseModelRef(id="x", repo="x/x", revision=None, licence="x", sha256="0"),
            training_file=DatasetRef(
                file_id="file-1", filename="a", sha256="0", bytes=1, examples=200
            ),
            validation_file=None,
            config=TrainingConfig(seed=1, max_steps=steps, checkpoint_steps=10**6, epochs=50),
            threads=threads,
            save_interval_s=save_interval_s,
        )
        (directory / JOB_SPEC_NAME).write_text(spec.model_dump_json())
        child = subprocess.Popen(
            [sys.executable, "-m", "worker.train", str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        times: list[float] = []
        pure_s, states = 0.0, 0
        assert child.stdout is not None
        for line in child.stdout:
            event = json.loads(line)
            if event["kind"] == "stepped":
                times.append(time.monotonic())
                pure_s = event["metrics"]["elapsed_s"]
            states += event["kind"] == "saved"
        assert child.wait() == 0
        return {"loop_s": times[-1] - times[0], "pure_s": pure_s, "states": states}


def compare_training(model: Path, *, rounds: int, steps: int, threads: int) -> None:
    often, never = [], []
    for _ in range(rounds):
        never.append(train(model, save_interval_s=1e6, steps=steps, threads=threads))
        often.append(train(model, save_interval_s=2.0, steps=steps, threads=threads))
    extra_s = [
        (a["loop_s"] - a["pure_s"] - (b["loop_s"] - b["pure_s"])) / a["states"]
        for a, b in zip(often, never, strict=True)
    ]
    state_s = statistics.median(extra_s)
    print(f"steps: {steps}, threads: {threads}, rounds: {rounds}")
    for name, runs in (("without", never), ("every 2 s", often)):
        loops = [run["loop_s"] for run in runs]
        states = [run["states"] for run in runs]
        print(f"states {name}: loop {statistics.median(loops):.1f} s {loops}, states {states}")
    print(f"one state: {state_s:.3f} s of a stopped loop (median of {extra_s})")
    print(f"at the default of one every 120 s: {100 * state_s / 120:.2f} % of the time")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["training"])
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    compare_training(
        options.model, rounds=options.rounds, steps=options.steps, threads=options.threads
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
