"""Run schemathesis over the whole OpenAPI document, in all of its phases: make fuzz

The exit code is 1 if an answer had a status of 500 or more.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.support.samples import write_catalogue
from tunery.local_service import LocalService

PROJECT = Path(__file__).parents[2]
SCHEMATHESIS = PROJECT / ".venv-fuzz/bin/schemathesis"
PHASES = "examples,coverage,fuzzing,stateful"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="for each operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    command = [SCHEMATHESIS, "run", PROJECT / "openapi.json", f"--phases={PHASES}"]
    command += [f"--max-examples={options.examples}", f"--seed={options.seed}"]
    command += ["--checks=not_a_server_error", "--continue-on-failure", "--request-timeout=30"]
    with tempfile.TemporaryDirectory() as name:
        data_dir = Path(name)
        write_catalogue(data_dir)
        with LocalService(data_dir, {"min_free_bytes": "0"}, workers=0) as service:
            done = subprocess.run([*command, f"--url={service.url}"], check=False, cwd=data_dir)
            service.check()
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
