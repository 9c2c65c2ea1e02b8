"""Keeps the page of a running job open for long, and checks that page and API do not grow.

    python -m tests.soak.page               # 20 minutes

The job takes several steps a second, so the page gets as much as of a long training. The exit code
is 1 if memory grows faster than its limit in `tests/soak/trends.py`, or if anything went wrong in
the page.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import httpx
from playwright.sync_api import Page

from benchmarks.support.samples import build_chat_file
from tests.browser.watching import Tabs, launching
from tests.soak.measure import INTERVAL_S, memory_of
from tests.soak.run import Outcome, print_report
from tests.soak.trends import MEMORY, Metric, Point, judge_trends
from tests.tiny import install_tiny_model
from tests.waiting import wait_until
from tunery.local_service import LocalService

JOBS = "/fine_tuning/jobs"
ROWS, EPOCHS = 5000, 50
"""So many that the job lasts longer than the measurement."""
FIRST_STEP_S = 120.0
_MIB = 1024 * 1024


def watch(data_dir: Path, *, minutes: float) -> Outcome:
    """Open the page of a new job, and measure it for some minutes.

    Args:
        data_dir: has the base model `tiny`.
    """
    settings = {"training_threads": "1", "install_default_model": "false"}
    with LocalService(data_dir, settings) as service, launching() as browser:
        job_id = _start_job(service)
        tabs = Tabs(browser, service.url)
        page = tabs.open(f"/job?id={job_id}")
        series: dict[Metric, list[Point]] = defaultdict(list)
        began_s = time.monotonic()
        while (now_s := time.monotonic() - began_s) < 60 * minutes:
            service.check()
            series["page", MEMORY].append((now_s, _heap_bytes(page) / _MIB))
            series["api", MEMORY].append((now_s, memory_of(service.processes["api"].pid)))
            page.wait_for_timeout(1000 * INTERVAL_S)
    return Outcome(judge_trends(series, minutes=minutes), tabs.faults)


def _start_job(service: LocalService) -> str:
    """Start a long job, and wait for its first step. Returns its id."""
    with httpx.Client(base_url=service.base_url, timeout=60) as http:
        files = {"file": ("train.jsonl", build_chat_file(ROWS))}
        uploaded = http.post("/files", files=files, data={"purpose": "fine-tune"})
        file_id = uploaded.raise_for_status().json()["id"]
        settings = {"n_epochs": EPOCHS, "batch_size": 1}
        body = {"model": "tiny", "training_file": file_id, "hyperparameters": settings}
        job_id = http.post(JOBS, json=body).raise_for_status().json()["id"]
        wait_until(
            lambda: http.get(f"{JOBS}/{job_id}").json()["trained_steps"], within_s=FIRST_STEP_S
        )
    return job_id


def _heap_bytes(page: Page) -> float:
    """What the scripts of the page hold, without what is only waiting to be collected."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = session.send("Performance.getMetrics")["metrics"]
    session.detach()
    return next(each["value"] for each in metrics if each["name"] == "JSHeapUsedSize")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory) / "data"
        install_tiny_model(data_dir, source=Path(directory) / "hub" / "our-tiny")
        outcome = watch(data_dir, minutes=options.minutes)
    print_report(outcome)
    return 0 if outcome.is_ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
