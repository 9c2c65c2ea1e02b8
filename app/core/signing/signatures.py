"""Ed25519 signatures in the usual forms: PEM for keys, 64 raw bytes for a signature.

`openssl pkeyutl -verify -pubin -rawin` checks the same files without Tunery.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from app.core.errors import OperatorError

SIGNATURE_BYTES = 64

_PUBLIC_BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\n?", re.DOTALL)
_ID_DIGITS = 32


class SigningKeyError(OperatorError):
    """A key cannot be read or is of another kind. The message says which and what to do."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures are checked with."""

    key: Ed25519PublicKey

    @property
    def id(self) -> str:
        """Short name of the key: half of the sha256 of its DER form, in hexadecimal digits."""
        der = self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()[:_ID_DIGITS]

    @property
    def pem(self) -> str:
        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def has_signed(self, content: bytes, signature: bytes) -> bool:
        try:
            self.key.verify(signature, content)
        except InvalidSignature:
            return False
        return True


def find_signer(content: bytes, signature: bytes, keys: Iterable[PublicKey]) -> PublicKey | None:
    """The first of `keys` that the signature is by. None if it is by none of them."""
    return next((key for key in keys if key.has_signed(content, signature)), None)


def parse_public_keys(pem: bytes) -> Sequence[PublicKey]:
    """Read every public key in a PEM file. Text around the keys is ignored.

    Raises:
        SigningKeyError: there is none, or one is not an Ed25519 key.
    """
    blocks = _PUBLIC_BLOCK.findall(pem)
    if not blocks:
        raise SigningKeyError("it has no public key: no line '-----BEGIN PUBLIC KEY-----'")
    return [_parse_public_key(block) for block in blocks]


def _parse_public_key(block: bytes) -> PublicKey:
    try:
        key = load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(f"it has a damaged public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningKeyError("it has a public key that is not an Ed25519 key")
    return PublicKey(key)


def parse_private_key(pem: bytes) -> Ed25519PrivateKey:
    """Read a private key that is not encrypted.

    Raises:
        SigningKeyError: it is not an Ed25519 key in PEM.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(f"it is not a private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError("it is a private key, but not an Ed25519 key")
    return key


def private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
