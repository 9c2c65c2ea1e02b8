import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from app.core.signing.keys import KEY_NAME, RETIRED_NAME, SigningKeys
from app.core.signing.signatures import SigningKeyError, find_signer, parse_public_keys

CONTENT = b"a manifest"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "signing"


@pytest.fixture
def keys(directory: Path) -> SigningKeys:
    return SigningKeys(directory)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """That of a careless operator."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_the_first_signature_makes_the_key(keys: SigningKeys) -> None:
    assert keys.list_public() == []

    signature = keys.sign(CONTENT)

    (public,) = keys.list_public()
    assert public.has_signed(CONTENT, signature)
    assert not public.has_signed(CONTENT + b"!", signature)
    assert not public.has_signed(CONTENT, signature[:-1])


@pytest.mark.usefixtures("open_umask")
def test_only_the_owner_reads_the_key_whatever_the_umask(
    keys: SigningKeys, directory: Path
) -> None:
    keys.rotate()
    keys.rotate()

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {KEY_NAME: 0o600, RETIRED_NAME: 0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_those_who_need_the_first_key_at_once_get_the_same(directory: Path) -> None:
    together = Barrier(8)

    def ensure(_: int) -> str:
        together.wait(30)
        return SigningKeys(directory).ensure().id

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(ensure, range(8)))

    assert len(ids) == 1


def test_a_rotated_key_signs_no_more_and_stays_listed(keys: SigningKeys) -> None:
    old_signature = keys.sign(CONTENT)
    old = keys.ensure()

    new = keys.rotate()
    newest = keys.rotate()

    assert [key.id for key in keys.list_public()] == [newest.id, new.id, old.id]
    assert find_signer(CONTENT, old_signature, keys.list_public()) == old
    assert find_signer(CONTENT, keys.sign(CONTENT), [old, new]) is None


def test_a_rotation_that_was_cut_short_lists_the_present_key_once(
    keys: SigningKeys, directory: Path
) -> None:
    key = keys.ensure()
    (directory / RETIRED_NAME).write_text(key.pem)

    assert [each.id for each in keys.list_public()] == [key.id]
    assert [each.id for each in SigningKeys(directory).list_public()] == [key.id]


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_key_is_named_and_not_replaced(
    content: bytes, keys: SigningKeys, directory: Path
) -> None:
    keys.ensure()
    (directory / KEY_NAME).write_bytes(content)

    with pytest.raises(SigningKeyError, match=r"signing/key\.pem: .*Restore it"):
        keys.sign(CONTENT)

    assert (directory / KEY_NAME).read_bytes() == content


def test_a_damaged_list_of_retired_keys_is_named(keys: SigningKeys, directory: Path) -> None:
    keys.rotate()
    keys.rotate()
    (directory / RETIRED_NAME).write_text("nothing")

    with pytest.raises(SigningKeyError, match=r"retired\.pem: it has no public key"):
        keys.list_public()


def test_a_list_of_public_keys_may_have_words_between_them(keys: SigningKeys) -> None:
    first, second = keys.ensure(), keys.rotate()
    text = f"# {first.id}\n{first.pem}# {second.id}\n{second.pem}"

    assert [key.id for key in parse_public_keys(text.encode())] == [first.id, second.id]


RSA = b"""-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf
9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==
-----END PUBLIC KEY-----
"""


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        (b"", "no public key"),
        (RSA.replace(b"MFww", b"AAAA"), "damaged"),
        (RSA, "not an Ed25519 key"),
        (b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", "no public key"),
    ],
)
def test_what_is_no_public_key_of_ours_is_refused(pem: bytes, message: str) -> None:
    with pytest.raises(SigningKeyError, match=message):
        parse_public_keys(pem)
