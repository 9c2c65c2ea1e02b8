"""Simulates power cuts of a disk while the service's own code writes to it.

    python -m tests.powercut.run [--cuts 200] [--writes 50000] [--seed N]

After every cut, all acknowledged data must exist and be intact. As a control, the program also runs
with one safeguard turned off at a time; each of these runs must lose data, which shows that the
program notices. The exit code is 1 if the service loses data or a control does not.
"""

import argparse
import json
import os
import random
import select
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from tests.powercut.audit import Acknowledged, audit
from tests.powercut.machine import CannotMountError, Machine
from tests.powercut.proof import prove_that_the_disk_forgets
from tests.powercut.writers import Sabotage, Writer, start_writer

CUTS_OF_A_DISK = 10
"""Number of cuts before the next disk. A new disk tests the first start too, and an audit stays
quick."""

CUTS_OF_A_CONTROL = 10
WRITES_OF_A_CONTROL_CUT = 100

MUST_LOSE: dict[Sabotage, str] = {
    "synchronous=NORMAL": "job lost",
    "no sync of files": "blob damaged",
    "no sync of directories": "blob lost",
    "no sync above": "blob lost",
}


@dataclass(slots=True)
class Result:
    cuts: int = 0
    acknowledged: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    """Number of losses by kind. A loss counts once, after the first cut that shows it."""
    seconds: float = 0.0

    @property
    def writes(self) -> int:
        """Number of acknowledged transactions, files and checkpoints."""
        kinds = ("jobs", "file", "checkpoint", "stored", "row")
        return sum(self.acknowledged[kind] for kind in kinds)


class WriterDiedError(Exception):
    """A writer failed although its disk was mounted."""


def cut_again_and_again(
    directory: Path, rng: random.Random, *, cuts: int, writes: int, sabotage: Sabotage = "none"
) -> Result:
    """Use one disk after another, until there are at least `cuts` cuts and `writes` writes."""
    result, begin_s = Result(), time.monotonic()
    while result.cuts < cuts or result.writes < writes:
        machine = Machine(directory / f"disk-{result.cuts}")
        acknowledged = Acknowledged()
        try:
            for number in range(CUTS_OF_A_DISK):
                is_first = number == 0
                wanted = 0 if is_first else round(rng.uniform(0, 2.2 * writes / cuts))
                _write_until_cut(machine, rng, acknowledged, wanted, sabotage)
                result.cuts += 1
                faults = _look(machine, rng, acknowledged)
                result.broken.update(kind for kind, _ in faults)
                if faults:
                    break  # later audits of this disk would report the same loss again
        finally:
            machine.destroy()
        result.acknowledged.update(acknowledged.kinds)
        result.seconds = time.monotonic() - begin_s
        _progress(result, sabotage)
    return result


def _write_until_cut(
    machine: Machine,
    rng: random.Random,
    acknowledged: Acknowledged,
    wanted: int,
    sabotage: Sabotage,
) -> None:
    """Cut the power while two writers run, or while they start if `wanted` is 0."""
    machine.start(writes_back=rng.random() < 0.5)
    writers = [start_writer(machine.root, rng.getrandbits(32), sabotage) for _ in range(2)]
    try:
        _listen(writers, acknowledged, wanted)
        time.sleep(rng.uniform(0, 0.01 if wanted else 0.3))
        if not all(writer.is_alive() for writer in writers):
            _listen(writers, acknowledged, sys.maxsize)
        machine.cut(rng.choice((None, rng.getrandbits(32))))
    finally:
        for writer in writers:
            writer.kill()
    for writer in writers:
        with os.fdopen(writer.acknowledgements, "rb") as pipe:
            for line in pipe:
                _note(line, acknowledged)


def _listen(writers: list[Writer], acknowledged: Acknowledged, wanted: int) -> None:
    """Record acknowledgements until `wanted` writes are acknowledged.

    Raises:
        WriterDiedError: a writer failed before that.
    """
    unfinished = dict.fromkeys((writer.acknowledgements for writer in writers), b"")
    heard = 0
    while heard < wanted or any(unfinished.values()):
        for descriptor in select.select(unfinished, [], [])[0]:
            said = os.read(descriptor, 65536)
            if not said:
                raise WriterDiedError("a writer ended without an error message")
            *lines, unfinished[descriptor] = (unfinished[descriptor] + said).split(b"\n")
            for line in lines:
                heard += 1
                if died := _note(line, acknowledged):
                    raise WriterDiedError(died)


def _note(line: bytes, acknowledged: Acknowledged) -> str | None:
    """Record one acknowledgement. Returns the error if the line says that a writer died."""
    kind, *what = json.loads(line)
    if kind == "died":
        return what[0]
    acknowledged.add(kind, *what)
    return None


def _look(
    machine: Machine, rng: random.Random, acknowledged: Acknowledged
) -> list[tuple[str, str]]:
    """Switch on and audit. Sometimes cut again first, so that recovery is interrupted too."""
    machine.start()
    try:
        if rng.random() < 0.2:
            writer = start_writer(machine.root, rng.getrandbits(32))
            time.sleep(rng.uniform(0, 0.1))
            machine.cut(rng.getrandbits(32))
            writer.kill()
            with os.fdopen(writer.acknowledgements, "rb") as pipe:
                for line in pipe:
                    _note(line, acknowledged)
            machine.start()
        return audit(machine.root, acknowledged)
    finally:
        machine.cut()


def _progress(result: Result, sabotage: Sabotage) -> None:
    broken = dict(result.broken) or "no losses"
    print(
        f"  {sabotage}: {result.cuts} cuts, {result.writes} writes, "
        f"{result.seconds:.0f} s, {broken}",
        file=sys.stderr,
        flush=True,
    )


def _report(results: dict[Sabotage, Result]) -> bool:
    print(f"{'safeguard off':24}{'cuts':>6}{'acknowledged':>14}  losses")
    verdict = True
    for sabotage, result in results.items():
        must_lose = MUST_LOSE.get(sabotage)
        is_right = bool(result.broken[must_lose]) if must_lose else not result.broken
        verdict = verdict and is_right
        found = ", ".join(f"{kind}: {number}" for kind, number in sorted(result.broken.items()))
        mark = "" if is_right else "   <-- UNEXPECTED"
        print(f"{sabotage:24}{result.cuts:6}{result.writes:14}  {found or 'none'}{mark}")
    kinds = ", ".join(f"{number} {kind}" for kind, number in results["none"].acknowledged.items())
    print(f"acknowledged with every safeguard on: {kinds}")
    return verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cuts", type=int, default=200, help="minimum number of power cuts")
    parser.add_argument(
        "--writes", type=int, default=50_000, help="minimum number of acknowledged writes"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    results: dict[Sabotage, Result] = {}
    with tempfile.TemporaryDirectory(prefix="tunery-powercut-") as name:
        directory = Path(name)
        try:
            proofs = prove_that_the_disk_forgets(directory / "proof")
        except CannotMountError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"the simulated disk behaves as expected in {proofs} checks", flush=True)
        for sabotage in get_args(Sabotage):
            is_control = sabotage in MUST_LOSE
            cuts = CUTS_OF_A_CONTROL if is_control else arguments.cuts
            results[sabotage] = cut_again_and_again(
                directory / str(len(results)),
                random.Random(f"{arguments.seed} {sabotage}"),  # noqa: S311 - chance, not secrecy
                cuts=cuts,
                writes=WRITES_OF_A_CONTROL_CUT * cuts if is_control else arguments.writes,
                sabotage=sabotage,
            )
    return 0 if _report(results) else 1


if __name__ == "__main__":
    sys.exit(main())
