"""API keys: `tnr_ID_SECRET_CHECKSUM`. The database keeps a key's id and hash, never the key.

The secret has 256 random bits, so a plain SHA-256 is a safe hash of it. The checksum tells a
mistyped key from a wrong one without asking the database.
"""

import hashlib
import re
import secrets
import zlib

from app.core.ids import IdPrefix

_SECRET_BYTES = 32
_FORM = re.compile(r"tnr_([0-9a-z]{26})_[0-9a-f]{64}_[0-9a-f]{8}", re.ASCII)


def new_key(key_id: str) -> str:
    """Make the key that has this id."""
    body = f"tnr_{key_id.removeprefix(IdPrefix.KEY)}_{secrets.token_hex(_SECRET_BYTES)}"
    return f"{body}_{_checksum(body)}"


def read_key_id(key: str) -> str | None:
    """The id in a key; None if the text is no key, or was mistyped."""
    match = _FORM.fullmatch(key)
    body, _, checksum = key.rpartition("_")
    if match is None or _checksum(body) != checksum:
        return None
    return IdPrefix.KEY + match[1]


def redact_key(key_id: str) -> str:
    """The key that has this id, without its secret."""
    return f"tnr_{key_id.removeprefix(IdPrefix.KEY)}_***"


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
