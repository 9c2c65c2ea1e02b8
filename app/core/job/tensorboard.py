"""The loss log as an events file of TensorBoard.

Such a file is a sequence of records, each with a length and checksums, as TensorFlow writes them
(`tensorflow/core/lib/io/record_writer.h`). A record has an `Event` in the wire format of protocol
buffers (`tensorflow/core/util/event.proto`). Of both formats only the few parts that are needed are
written here, because the libraries that write them bring numpy or more to the API.
"""

import struct
from collections.abc import Iterable, Iterator

from app.core.job.loss_log import StepMetrics

MEDIA_TYPE = "application/x-tensorboard"

_VERSION = b"brain.Event:2"
"""Text of the first event, by which readers know the format."""

_MASK = 0xA282EAD8
"""Constant of TensorFlow's masked checksums."""

_POLYNOMIAL = 0x82F63B78
"""Polynomial of CRC-32C, with its bits in reverse order."""

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
"""Types of fields on the wire."""


def event_records(batches: Iterable[Iterable[StepMetrics]], *, began_s: float) -> Iterator[bytes]:
    """Write an events file, in pieces.

    Args:
        batches: rows of the loss log.
        began_s: Unix time at which the training began. The time of a step is the time spent in
            training after it.
    """
    yield _record(_fixed_64(1, began_s) + _bytes(3, _VERSION))
    for rows in batches:
        yield b"".join(_record(_event(row, began_s)) for row in rows)


def _event(row: StepMetrics, began_s: float) -> bytes:
    values = row.measurements().items()
    summary = b"".join(_bytes(1, _scalar(name, value)) for name, value in values)
    time = _fixed_64(1, began_s + row.elapsed_s)
    return time + _key(2, _VARINT) + _varint(row.step) + _bytes(5, summary)


def _scalar(name: str, value: float) -> bytes:
    return _bytes(1, name.encode()) + _key(2, _FIXED_32) + struct.pack("<f", value)


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def _make_table() -> Iterator[int]:
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        yield crc


_TABLE = tuple(_make_table())


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _fixed_64(field: int, value: float) -> bytes:
    return _key(field, _FIXED_64) + struct.pack("<d", value)


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while rest := value >> 7:
        encoded.append(value & 0x7F | 0x80)
        value = rest
    return bytes([*encoded, value])
