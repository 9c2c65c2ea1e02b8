"""The service as users install it: a wheel in an environment of its own, built once per state."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CACHE = Path(os.environ.get("TUNERY_TEST_CACHE") or ROOT / ".cache" / "tunery-tests")
_UNUSED_S = 24 * 3600
"""Seconds since its last use after which an installation is removed; another run may use it."""
_SOURCES = ("tunery", "app", "worker", "migrations", "examples", "pyproject.toml", "README.md")


def install_wheel() -> Path:
    """Build the wheel and install it, unless an earlier run has done so for the same sources.

    The environment has the dependencies of the tests' own, but not the checkout on its path.

    Returns:
        The directory of its programs, `tunery` and `python` among them.
    """
    environment = _CACHE / f"wheel-{_digest_of_sources()}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "wheel.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not environment.exists():
            for old in _CACHE.glob("wheel-*"):
                if time.time() - old.stat().st_mtime > _UNUSED_S:
                    shutil.rmtree(old)
            _install(environment)
        environment.touch()
    return environment / "bin"


def _digest_of_sources() -> str:
    files = [
        path
        for name in _SOURCES
        for path in sorted([ROOT / name, *(ROOT / name).rglob("*")])
        if path.is_file() and "__pycache__" not in path.parts
    ]
    digest = hashlib.sha256(sys.executable.encode())
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _install(environment: Path) -> None:
    with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
        _run("-m", "build", "--wheel", "--no-isolation", "--outdir", scratch, str(ROOT))
        (wheel,) = Path(scratch).glob("*.whl")
        _run("-m", "venv", "--without-pip", str(environment))
        python = str(environment / "bin" / "python")
        _run("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", str(wheel))
    paths = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # A path that a .pth file names is not searched for further .pth files: the checkout, which an
    # editable install may have put on the path of this environment, stays out of the other one.
    purelib = Path(paths.stdout.strip())
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")


def _run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stdout
