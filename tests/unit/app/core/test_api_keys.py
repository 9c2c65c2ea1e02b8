"""Keys of the API: long, recognizable, and checked for typing errors."""

import re

import pytest

from app.core.access.api_keys import hash_key, new_key, read_key_id
from app.core.ids import IdPrefix, new_id


def test_a_key_names_its_id_and_has_256_random_bits() -> None:
    key_id = new_id(IdPrefix.KEY)

    keys = {new_key(key_id) for _ in range(100)}

    assert len(keys) == len({hash_key(key) for key in keys}) == 100
    assert {read_key_id(key) for key in keys} == {key_id}
    assert all(re.fullmatch(r"tnr_[0-9a-z]{26}_[0-9a-f]{64}_[0-9a-f]{8}", key) for key in keys)


def test_every_single_typing_error_is_noticed() -> None:
    key = new_key(new_id(IdPrefix.KEY))

    typed = [key[:at] + ("a" if was != "a" else "b") + key[at + 1 :] for at, was in enumerate(key)]

    assert [wrong for wrong in typed if read_key_id(wrong) is not None] == []


@pytest.mark.parametrize("text", ["", "sk-abc", "tnr___", "tnr_" + "é" * 26, "unused"])
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert read_key_id(text) is None
    assert read_key_id(f"{new_key(new_id(IdPrefix.KEY))}\n") is None
