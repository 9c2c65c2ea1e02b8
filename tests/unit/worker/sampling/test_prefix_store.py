"""What was read of a prompt is found again, by its owner alone, and within a number of bytes."""

from dataclasses import dataclass

from app.core.clock import steady_s
from worker.sampling.model.prefixes import PrefixOwner, PrefixStore

ANN = PrefixOwner("ann", "base", None)
BEN = PrefixOwner("ben", "base", None)
TUNED = PrefixOwner("ann", "base", "adapter")


@dataclass
class CacheOfLength:
    """A byte for each token."""

    length: int
    can_be_cut: bool = True

    @property
    def bytes(self) -> int:
        return self.length

    def fork(self, length: int) -> "CacheOfLength":
        return CacheOfLength(length if self.can_be_cut or length == self.length else 0)


def build_store(max_bytes: int = 100, **prompts: PrefixOwner) -> PrefixStore:
    store = PrefixStore(max_bytes)
    for prompt, owner in prompts.items():
        store.keep(owner, prompt.encode(), CacheOfLength(len(prompt)))
    return store


def found(store: PrefixStore, owner: PrefixOwner, prompt: str) -> int:
    known = store.find(owner, prompt.encode())
    return known.cache.fork(known.length).length if known else 0


def test_the_longest_common_beginning_is_found() -> None:
    store = build_store(system_a=ANN, system_bc=ANN)

    assert found(store, ANN, "system_bd") == len("system_b")
    assert found(store, ANN, "other") == 0


def test_the_last_token_of_a_prompt_is_always_left_to_be_read() -> None:
    store = build_store(prompt=ANN)

    assert found(store, ANN, "prompt") == len("promp")
    assert found(store, ANN, "p") == 0


def test_nothing_is_shared_between_projects_and_between_adapters() -> None:
    store = build_store(prompt=ANN)

    assert found(store, BEN, "prompts") == 0
    assert found(store, TUNED, "prompts") == 0


def test_the_least_recently_used_makes_room() -> None:
    store = build_store(10, aaaa=ANN, bbbb=ANN)
    assert found(store, ANN, "aaaa_") == 4

    store.keep(ANN, b"cccc", CacheOfLength(4))

    assert [found(store, ANN, each) for each in ("aaaa_", "bbbb_", "cccc_")] == [4, 0, 4]
    assert store.bytes == 8


def test_a_cache_that_is_too_large_is_not_kept_and_drives_nothing_out() -> None:
    store = build_store(10, aaaa=ANN)

    store.keep(ANN, b"b" * 11, CacheOfLength(11))

    assert found(store, ANN, "aaaa_") == 4
    assert store.bytes == 4


def test_of_two_prompts_of_which_one_begins_the_other_only_the_longer_is_kept() -> None:
    store = build_store(abc=ANN, abcdef=ANN, abcd=ANN)

    assert store.bytes == 6
    assert found(store, ANN, "abcz") == 3


def test_what_cannot_be_cut_is_found_only_whole() -> None:
    store = PrefixStore(100)
    store.keep(ANN, b"abcd", CacheOfLength(4, can_be_cut=False))

    assert found(store, ANN, "abx") == 0
    assert found(store, ANN, "abcde") == 4


def test_what_was_not_used_for_long_leaves() -> None:
    store = build_store(100, aaaa=ANN)
    later_s = steady_s()
    store.keep(BEN, b"bbbb", CacheOfLength(4))

    store.drop_unused(later_s)

    assert found(store, ANN, "aaaa_") == 0
    assert found(store, BEN, "bbbb_") == 4


def test_it_can_be_made_smaller() -> None:
    store = build_store(100, aaaa=ANN, bbbb=BEN)

    store.shrink(5)

    assert found(store, ANN, "aaaa_") == 0
    assert found(store, BEN, "bbbb_") == 4
