"""A file of any size is received and sent in the same memory: measured on a process of its own."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.effort import effort
from tests.stores.servers import BUCKET, StoreServer

PROGRAM = """
import asyncio
import hashlib
import json
import re
import sys
from pathlib import Path

from app.core.settings import Settings
from app.main import create_app
from tests.asgi import post_in_chunks, scope_of_post

def peak_bytes():  # getrusage would count what the parent had before this program began
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024

def form(field, megabytes):
    yield b'--X\\r\\nContent-Disposition: form-data; name="purpose"\\r\\n\\r\\nfine-tune\\r\\n'
    yield b'--X\\r\\nContent-Disposition: form-data; name="%s"; filename="a"\\r\\n\\r\\n' % field
    line = b'{"text": "' + b"x" * (2**16 - 13) + b'"}\\n'
    assert len(line) == 2**16
    for _ in range(megabytes * 16):
        yield line
    yield b"\\r\\n--X--\\r\\n"

megabytes = int(sys.argv[4])
limits = dict(max_upload_bytes=megabytes * 2**20, min_free_bytes=0, store_url=sys.argv[5])
app = create_app(Settings(_env_file=None, data_dir=Path(sys.argv[1]), **limits))
from app.core.db.migrate import upgrade
upgrade(app.state.resources.database)

def post(path, chunks, content_type="multipart/form-data; boundary=X"):
    answer = post_in_chunks(app, path, chunks, content_type)
    assert answer.status == 200, answer.body
    return answer.body

def post_json(path, **body):
    return post(path, [json.dumps(body).encode()], "application/json")

def send_whole(megabytes):
    return post("/v1/files", form(b"file", megabytes))

def send_in_parts(megabytes):
    named = dict(filename="a", mime_type="text/jsonl", purpose="fine-tune")
    path = "/v1/uploads/" + post_json("/v1/uploads", bytes=megabytes * 2**20, **named)["id"]
    part = min(megabytes, 50)
    ids = [post(path + "/parts", form(b"data", part))["id"] for _ in range(megabytes // part)]
    return post_json(path + "/complete", part_ids=ids, md5=sys.argv[3])["file"]

def fetch(file_id):
    sha256 = hashlib.sha256()
    size = 0

    async def receive():
        await asyncio.sleep(3600)

    async def take(message):
        nonlocal size
        sha256.update(message.get("body", b""))
        size += len(message.get("body", b""))

    scope = scope_of_post("/v1/files/" + file_id + "/content", {}) | {"method": "GET"}
    asyncio.run(app(scope, receive, take))
    return size, sha256.hexdigest()

send = {"whole": send_whole, "in parts": send_in_parts}[sys.argv[2]]
fetch(send_whole(32)["id"])
before = peak_bytes()
file = send(megabytes)
assert (file["bytes"], file["examples"]) == (megabytes * 2**20, megabytes * 16), file
received = peak_bytes() - before
size, sha256 = fetch(file["id"])
print(json.dumps([received, peak_bytes() - before, size, sha256]))
"""

MEGABYTES = effort(200, long=2100)
MEGABYTES_IN_BUCKET = effort(100, long=4096)
LIMIT_BYTES = 32 * 2**20
LINE = b'{"text": "' + b"x" * (2**16 - 13) + b'"}\n'


def transfer(data_dir: Path, how: str, megabytes: int, store_url: str = "") -> None:
    """Send a file to a service of its own, fetch it, and check both the bytes and the memory."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    for _ in range(megabytes):
        md5.update(LINE * 16)
        sha256.update(LINE * 16)
    arguments = [str(data_dir), how, md5.hexdigest(), str(megabytes), store_url]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    received, sent, size, digest = json.loads(done.stdout)
    sys.stdout.write(f"{how}, {megabytes} MiB: {received:,} and {sent:,} bytes of memory\n")
    assert (size, digest) == (megabytes * 2**20, sha256.hexdigest())
    assert max(received, sent) < LIMIT_BYTES


@pytest.mark.parametrize("how", ["whole", "in parts"])
def test_a_large_file_is_transferred_in_constant_memory(tmp_path: Path, how: str) -> None:
    transfer(tmp_path, how, MEGABYTES)


@pytest.mark.timeout(effort(300, long=3600))
@pytest.mark.parametrize("how", ["whole", "in parts"])
def test_a_large_file_goes_to_a_bucket_and_back_in_constant_memory(
    *,
    tmp_path: Path,
    own_server: Callable[[str], StoreServer],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """The server keeps the file on disk, so memory holds it nowhere."""
    server = own_server("localbucket")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)

    transfer(tmp_path / "data", how, MEGABYTES_IN_BUCKET, f"s3://{BUCKET}/files")

    shutil.rmtree(server.root / "data")
