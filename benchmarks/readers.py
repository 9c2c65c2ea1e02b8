"""Follows a job over many streams at once, and says what has arrived.

    python -m benchmarks.readers http://127.0.0.1:8000 JOB --readers 200 --seconds 30

It runs in a process of its own, and does as little as it can: it counts bytes and the messages of
its first stream, and parses nothing.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

_READ_BYTES = 64 * 1024


@dataclass
class Received:
    """What one stream has received."""

    bytes: int = 0
    parts: int = 0
    """Reads from its connection."""
    jobs: int = 0
    """Messages that show the job."""


async def follow(url: str, job_id: str) -> Received:
    """Read a stream from now on, until this is cancelled or the server ends it."""
    parts, received = urlsplit(url), Received()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    path = f"/v1/fine_tuning/jobs/{job_id}/events?stream=true&cursor=latest"
    writer.write(f"GET {path} HTTP/1.1\r\nhost: {parts.hostname}\r\n\r\n".encode())
    try:
        while part := await reader.read(_READ_BYTES):
            received.bytes += len(part)
            received.parts += 1
            received.jobs += part.count(b"event: job\n")
    except asyncio.CancelledError:
        pass
    writer.close()
    return received


async def follow_all(url: str, job_id: str, *, readers: int, seconds: float) -> list[Received]:
    streams = [asyncio.create_task(follow(url, job_id)) for _ in range(readers)]
    await asyncio.sleep(seconds)
    for stream in streams:
        stream.cancel()
    return await asyncio.gather(*streams)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("job_id")
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args(arguments)
    following = follow_all(
        options.url, options.job_id, readers=options.readers, seconds=options.seconds
    )
    received = asyncio.run(following)
    report = {
        "served": sum(1 for one in received if one.jobs > 0),
        "fewest_jobs": min(one.jobs for one in received),
        "most_jobs": max(one.jobs for one in received),
        "bytes": sum(one.bytes for one in received),
        "own_cpu_s": time.process_time(),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
