"""Which settings a process may start with while an installation moves, and that no byte is lost."""

import random
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from app.core.db.installation.places import PreviousState, StorePlaces, WrongStoreError
from tests.builders import NOW
from tests.effort import effort

HOME = StorePlaces("a")
MOVING = StorePlaces("b", "a", PreviousState.OPEN, moved_at=NOW)


def test_a_service_that_does_not_move_starts_with_its_store() -> None:
    assert HOME.seen_by("a", None, now=NOW) is HOME


def test_the_first_process_with_the_new_settings_makes_the_switch() -> None:
    assert replace(HOME, target="b").seen_by("b", "a", now=NOW) == MOVING


def test_a_service_can_move_back_at_any_time() -> None:
    for state in PreviousState:
        moved = StorePlaces("b", "a", state)
        back = StorePlaces("a", "b", PreviousState.OPEN, moved_at=NOW)
        assert moved.seen_by("a", "b", now=NOW) == back


@pytest.mark.parametrize(
    ("places", "present", "previous", "why"),
    [
        (HOME, None, None, "does not belong"),
        (HOME, "other", None, "does not belong"),
        (HOME, "other", "a", "does not belong"),
        (replace(HOME, target="b"), "b", None, "set TUNERY_STORE_PREVIOUS_URL to the store that"),
        (replace(HOME, target="b"), "b", "other", "set TUNERY_STORE_PREVIOUS_URL to the store"),
        (MOVING, "b", None, "may still be only in its previous store"),
        (MOVING.closed(), "b", None, "may still be only in its previous store"),
        (MOVING, "b", "other", "that the service has not come from"),
        (HOME, "a", "other", "that the service has not come from"),
        (MOVING, "a", None, "uses another store than this one"),
    ],
)
def test_other_settings_are_refused(
    places: StorePlaces, present: str | None, previous: str | None, why: str
) -> None:
    with pytest.raises(WrongStoreError, match=why):
        places.seen_by(present, previous, now=NOW)


def test_once_all_is_copied_the_previous_store_is_not_needed() -> None:
    copied = replace(MOVING, previous_state=PreviousState.COPIED)

    assert copied.seen_by("b", None, now=NOW) is copied
    assert copied.seen_by("b", "a", now=NOW) is copied


@dataclass
class Process:
    """A process of the service, with the settings that it was started with."""

    present: str
    previous: str | None
    ids: set[str]
    """Ids of its stores, as their markers were when it started."""
    put_id: str
    uncommitted: list[int] = field(default_factory=list[int])


class World:
    """An installation whose operator and processes do whatever their settings allow."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - nothing secret
        self.stores: dict[str, set[int]] = {"A": set(), "B": set(), "C": set()}
        self.markers: dict[str, str | None] = {"A": "a", "B": None, "C": None}
        self.places = HOME
        self.now = NOW
        self.rows: set[int] = set()
        self.processes: list[Process] = []
        self.blobs = 0
        self.listed: set[int] | None = None
        """Rows that the running copy has read."""
        self.copied = HOME
        """What that copy knows of the places."""
        self.done: set[str] = set()
        self.lost: list[str] = []

    def run(self, steps: int) -> None:
        acts = [
            self.start, self.start, self.put, self.put, self.commit, self.commit, self.read,
            self.read, self.kill, self.copy_to, self.copy_rest, self.wipe, self.delete,
        ]  # fmt: skip
        for _ in range(steps):
            self.chance.choice(acts)()
            self._check()

    def start(self) -> None:
        """Start a process with any settings. The operator names every two stores."""
        present = self.chance.choice("ABC")
        previous = self.chance.choice([None, *"ABC".replace(present, "")])
        markers = self.markers[present], previous and self.markers[previous]
        try:
            self.now += timedelta(seconds=1)
            self.places = self.places.seen_by(*markers, now=self.now)
        except WrongStoreError:
            self.done.add("refused")
            return
        ids = {marker for marker in markers if marker is not None}
        assert markers[0] is not None
        self.processes.append(Process(present, previous, ids, markers[0]))
        self.done.add(f"started in {self.places.previous_state}")

    def kill(self) -> None:
        if self.processes and self.chance.random() < 0.3:
            self.processes.remove(self.chance.choice(self.processes))

    def put(self) -> None:
        if self.processes:
            process = self.chance.choice(self.processes)
            self.blobs += 1
            self.stores[process.present].add(self.blobs)
            process.uncommitted.append(self.blobs)

    def commit(self) -> None:
        """Commit a row that names a blob: atomic with the question whether it may."""
        waiting = [process for process in self.processes if process.uncommitted]
        if waiting:
            process = self.chance.choice(waiting)
            blob = process.uncommitted.pop()
            if self.places.may_write(process.put_id):
                self.rows.add(blob)
                self.done.add("committed" if process.ids >= self.places.needed else "by an old one")
            else:
                self.stores[process.present].discard(blob)
                self.done.add("fenced")

    def read(self) -> None:
        if self.processes and self.rows:
            process, blob = self.chance.choice(self.processes), self.chance.choice([*self.rows])
            if any(blob in self.stores[s] for s in (process.present, process.previous) if s):
                return
            if self.places.needed <= process.ids:
                self.lost.append(f"{process} believes that {blob} is lost in {self.places}")
            self.done.add("answered 503")

    def delete(self) -> None:
        if self.processes and self.rows:
            process, blob = self.chance.choice(self.processes), self.chance.choice([*self.rows])
            self.rows.remove(blob)
            for store in (process.present, process.previous):
                if store:
                    self.stores[store].discard(blob)

    def copy_to(self) -> None:
        """`tunery store copy URL`, which may be killed."""
        source = self._store_of(self.places.present)
        if source is None or self.places.needed != {self.places.present}:
            return
        target = self.chance.choice("ABC".replace(source, ""))
        if self.markers[target] is None and not self.stores[target]:
            self.markers[target] = f"{target.lower()}{self.blobs}"
        if self.markers[target] not in {None, self.places.present}:
            self.places = replace(self.places, target=self.markers[target])
            for blob in self.rows & self.stores[source]:
                if self.chance.random() < 0.5:
                    self.stores[target].add(blob)
            self.done.add("copied ahead")

    def copy_rest(self) -> None:
        """`tunery store copy`: it closes the previous store, lists the rows, and takes its time."""
        present = self._store_of(self.places.present)
        previous = self.places.previous and self._store_of(self.places.previous)
        if present is None or previous is None:
            return
        if self.listed is None or self.chance.random() < 0.3:  # killed, and begun again
            self.places = self.places.closed()
            self.copied, self.listed = self.places, set(self.rows)
            return
        if self.copied == self.places and self.places.previous_state is not PreviousState.COPIED:
            self.stores[present] |= self.listed & self.rows & self.stores[previous]
            self.places = replace(self.places, previous_state=PreviousState.COPIED)
            self.done.add("copied all")
        self.listed = None

    def wipe(self) -> None:
        """The operator empties the previous store as soon as that is allowed, marker and all."""
        if self.places.previous_state is PreviousState.COPIED:
            previous = self.places.previous and self._store_of(self.places.previous)
            if previous:
                self.stores[previous].clear()
                self.markers[previous] = None
                self.done.add("wiped")

    def _store_of(self, store_id: str) -> str | None:
        return next((name for name, marker in self.markers.items() if marker == store_id), None)

    def _check(self) -> None:
        reachable = {
            blob
            for store_id in self.places.needed
            if (name := self._store_of(store_id)) is not None
            for blob in self.stores[name]
        }
        if self.rows - reachable:
            self.lost.append(f"{self.rows - reachable} in {self.places}")


@pytest.mark.parametrize("seed", range(effort(30, long=1000)))
def test_no_order_of_events_loses_a_blob(seed: int) -> None:
    world = World(seed)
    world.run(600)

    assert world.lost == []


def test_all_that_can_happen_does_happen() -> None:
    done: set[str] = set()
    for seed in range(30):
        world = World(seed)
        world.run(600)
        done |= world.done

    assert done >= {
        "refused", "started in None", "started in open", "started in closed", "started in copied",
        "committed", "by an old one", "fenced", "answered 503", "copied ahead", "copied all",
        "wiped",
    }  # fmt: skip
