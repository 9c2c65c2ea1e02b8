"""How fast a data set is uploaded, checked and stored, and in how much memory."""

import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks.support.samples import write_catalogue
from tunery.local_service import LocalService

ROOT = Path(__file__).parents[1]
MIB = 2**20


def build_texts(chance: random.Random, count: int) -> list[str]:
    """Texts of 5 to 300 words, with what real ones have in them: quotes, line ends, any script."""
    words = (ROOT / "LICENSE").read_text().split()
    words += ['"so"', "größe", "naïve", "日本語", "привет", "\n\n", "a\tb", "C:\\x", "🙂", "1e5"]
    return [" ".join(chance.choices(words, k=chance.randint(5, 300))) for _ in range(count)]


def build_chat(chance: random.Random, texts: list[str], number: int) -> dict[str, object]:
    """A conversation of one to four questions, which no other line has."""
    messages = [{"role": "system", "content": f"You are assistant {number}."}]
    for _ in range(chance.randint(1, 4)):
        messages.append({"role": "user", "content": chance.choice(texts)})
        messages.append({"role": "assistant", "content": chance.choice(texts)})
    return {"messages": messages}


def build_pair(chance: random.Random, texts: list[str], number: int) -> dict[str, object]:
    """A short question and answer."""
    question, answer = chance.choice(texts)[:60], chance.choice(texts)[:60]
    return {"prompt": f"{number}. {question}", "completion": f"{answer}."}


SHAPES: dict[str, Callable[[random.Random, list[str], int], dict[str, object]]] = {
    "conversations": build_chat,
    "short pairs": build_pair,
}


def write_data_set(path: Path, shape: str, mib: float) -> int:
    """Write about so much. Returns the number of its lines."""
    chance = random.Random(0)  # noqa: S311 - nothing secret
    texts = build_texts(chance, 5000)
    lines, written = 0, 0
    with path.open("wb") as target:
        while written < mib * MIB:
            row = SHAPES[shape](chance, texts, lines)
            written += target.write(json.dumps(row, ensure_ascii=bool(lines % 2)).encode() + b"\n")
            lines += 1
    return lines


def peak_rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def upload(client: httpx.Client, path: Path) -> dict[str, object]:
    with path.open("rb") as source:
        answer = client.post(
            "/files", data={"purpose": "fine-tune"}, files={"file": (path.name, source)}
        )
    answer.raise_for_status()
    return answer.json()


def time_upload(api_pid: int, client: httpx.Client, path: Path) -> tuple[float, float]:
    """Seconds that it takes, and those that the API's process computes."""
    began, computed_s = time.perf_counter(), cpu_s(api_pid)
    made = upload(client, path)
    took = time.perf_counter() - began, cpu_s(api_pid) - computed_s
    client.delete(f"/files/{made['id']}").raise_for_status()
    return took


def measure(*, small_mib: float, large_mib: float, rounds: int) -> None:
    """Print MiB/s for every shape of data, and how the process has grown."""
    with tempfile.TemporaryDirectory() as name:
        data_dir, small, large = (Path(name) / part for part in ("data", "small", "large"))
        write_catalogue(data_dir)
        for shape in SHAPES:
            write_data_set(small, shape, small_mib)
            lines = write_data_set(large, shape, large_mib)
            mib = large.stat().st_size / MIB
            # Kept free: what the machine runs it on is not what is measured.
            settings = {"max_upload_bytes": str(2**40), "min_free_bytes": "0"}
            with (
                LocalService(data_dir, settings, workers=0) as service,
                httpx.Client(base_url=service.base_url, timeout=600) as client,
            ):
                api_pid = service.processes["api"].pid
                time_upload(api_pid, client, small)
                before = peak_rss_bytes(api_pid)
                took = [time_upload(api_pid, client, large) for _ in range(rounds)]
                after = peak_rss_bytes(api_pid)
            wall_s = statistics.median(seconds for seconds, _ in took)
            computed_s = statistics.median(seconds for _, seconds in took)
            print(f"{shape}: {mib:.0f} MiB in {lines:,} lines, median of {rounds}")
            print(f"  {mib / wall_s:.0f} MiB/s; {1000 * computed_s / mib:.1f} ms of CPU per MiB")
            print(
                f"  peak memory: {before / MIB:.0f} MiB after {small_mib:g} MiB, "
                f"{after / MIB:.0f} MiB after {mib:.0f} MiB"
            )
