"""An upload of any size takes the same memory: measured on a process of its own."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import re
import sys
from pathlib import Path

from app.core.settings import Settings
from app.main import create_app
from tests.asgi import post_in_chunks

def peak_bytes():  # getrusage would count what the parent had before this program began
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024

def form(megabytes):
    yield b'--X\\r\\nContent-Disposition: form-data; name="purpose"\\r\\n\\r\\nfine-tune\\r\\n'
    yield b'--X\\r\\nContent-Disposition: form-data; name="file"; filename="a"\\r\\n\\r\\n'
    line = b'{"text": "' + b"x" * (2**16 - 13) + b'"}\\n'
    assert len(line) == 2**16
    for _ in range(megabytes * 16):
        yield line
    yield b"\\r\\n--X--\\r\\n"

app = create_app(Settings(_env_file=None, data_dir=Path(sys.argv[1])))
from app.core.db.migrate import upgrade
upgrade(app.state.services.database)
content_type = "multipart/form-data; boundary=X"
assert post_in_chunks(app, "/v1/files", form(1), content_type).status == 200
before = peak_bytes()
answer = post_in_chunks(app, "/v1/files", form(200), content_type)
assert answer.status == 200, answer.body
assert answer.body["bytes"] == 200 * 2**20, answer.body
assert answer.body["examples"] == 3200, answer.body
print(peak_bytes() - before)
"""

LIMIT_BYTES = 32 * 2**20


def test_two_hundred_megabytes_are_uploaded_in_constant_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < LIMIT_BYTES
