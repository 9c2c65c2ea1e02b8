import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from app.core.ids import IdPrefix, new_id


def test_ids_are_unique_and_sort_by_the_time_they_were_made() -> None:
    made = [new_id(IdPrefix.JOB) for _ in range(10_000)]

    assert all(earlier < later for earlier, later in pairwise(made))


def test_ids_made_by_many_threads_are_unique_and_in_order_within_each() -> None:
    with ThreadPoolExecutor(8) as threads:
        per_thread = list(
            threads.map(lambda _: [new_id(IdPrefix.EVENT) for _ in range(2000)], range(8))
        )

    assert len({one for ids in per_thread for one in ids}) == 16_000
    assert all(ids == sorted(ids) for ids in per_thread)


def test_ids_go_on_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_id(IdPrefix.FILE)
    monkeypatch.setattr(time, "time_ns", lambda: 0)

    assert new_id(IdPrefix.FILE) > before


@pytest.mark.parametrize("prefix", IdPrefix)
def test_an_id_says_what_it_names_and_needs_no_escaping(prefix: IdPrefix) -> None:
    made = new_id(prefix)

    assert made.startswith(prefix)
    assert len(made) == len(prefix) + 26
    assert set(made.removeprefix(prefix)) <= set("0123456789abcdefghjkmnpqrstvwxyz")
