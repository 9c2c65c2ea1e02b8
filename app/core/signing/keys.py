"""The service's signing key in the data directory, and the public keys that it replaced.

`key.pem`       the private key, readable by its owner alone
`retired.pem`   public keys of earlier private keys, newest first

The files are read for every signature, so that a rotation needs no restart. A training child is
never given this directory.
"""

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.core.machine import durable
from app.core.signing.signatures import (
    PublicKey,
    SigningKeyError,
    parse_private_key,
    parse_public_keys,
    private_pem,
)

KEY_NAME = "key.pem"
RETIRED_NAME = "retired.pem"
KEY_FILES = (KEY_NAME, RETIRED_NAME)
"""In the order in which to copy them: a rotation meanwhile then loses no public key."""


class SigningKeys:
    """The keys in `directory`. Several processes may use them at once.

    Every method raises SigningKeyError if a file of the directory is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ensure(self) -> PublicKey:
        """Make a key unless there is one. Returns its public key."""
        return PublicKey(self._load_or_make().public_key())

    def sign(self, content: bytes) -> bytes:
        """Sign with the present key, which is made if there is none."""
        return self._load_or_make().sign(content)

    def list_public(self) -> Sequence[PublicKey]:
        """The present public key and then the retired ones, newest first. Makes no key."""
        present = self._load()
        keys = [*([PublicKey(present.public_key())] if present else []), *self._load_retired()]
        # A rotation that was interrupted has retired the present key already.
        return list({key.id: key for key in keys}.values())

    def rotate(self) -> PublicKey:
        """Replace the private key by a new one and keep the old public key in the list."""
        with self._locked():
            old = self.list_public()
            if old:  # first, so that no crash loses a public key
                retired = "".join(key.pem for key in old)
                durable.replace_privately(self._directory / RETIRED_NAME, retired.encode())
            return PublicKey(self._make().public_key())

    def _load_or_make(self) -> Ed25519PrivateKey:
        key = self._load()
        if key is None:
            with self._locked():
                key = self._load() or self._make()
        return key

    def _load(self) -> Ed25519PrivateKey | None:
        path = self._directory / KEY_NAME
        content = _read(path)
        try:
            return None if content is None else parse_private_key(content)
        except SigningKeyError as error:
            raise SigningKeyError(
                f"{path}: {error}. Restore it from a backup, or remove it: a new key is then made."
            ) from error

    def _load_retired(self) -> Sequence[PublicKey]:
        path = self._directory / RETIRED_NAME
        content = _read(path)
        try:
            return [] if content is None else parse_public_keys(content)
        except SigningKeyError as error:
            raise SigningKeyError(f"{path}: {error}. Restore it from a backup.") from error

    def _make(self) -> Ed25519PrivateKey:
        key = Ed25519PrivateKey.generate()
        durable.replace_privately(self._directory / KEY_NAME, private_pem(key))
        return key

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Let one process at a time make a key."""
        durable.make_directory(self._directory)
        self._directory.chmod(0o700)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
