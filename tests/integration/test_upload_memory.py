"""A file of any size is received in the same memory: measured on a process of its own."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.effort import effort

PROGRAM = """
import json
import re
import sys
from pathlib import Path

from app.core.settings import Settings
from app.main import create_app
from tests.asgi import post_in_chunks

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
limits = dict(max_upload_bytes=megabytes * 2**20, min_free_bytes=0)
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

send = {"whole": send_whole, "in parts": send_in_parts}[sys.argv[2]]
send_whole(1)
before = peak_bytes()
file = send(megabytes)
assert (file["bytes"], file["examples"]) == (megabytes * 2**20, megabytes * 16), file
print(peak_bytes() - before)
"""

MEGABYTES = effort(200, long=2100)
LIMIT_BYTES = 32 * 2**20


@pytest.mark.parametrize("how", ["whole", "in parts"])
def test_a_large_file_is_uploaded_in_constant_memory(tmp_path: Path, how: str) -> None:
    line = b'{"text": "' + b"x" * (2**16 - 13) + b'"}\n'
    md5 = hashlib.md5(usedforsecurity=False)
    for _ in range(MEGABYTES):
        md5.update(line * 16)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), how, md5.hexdigest(), str(MEGABYTES)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < LIMIT_BYTES
