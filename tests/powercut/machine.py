"""A machine whose power can be cut: the forgetful disk, mounted by a process of its own."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

_PROJECT = Path(__file__).parents[2]
_START_S = 20
_POLL_S = 0.005


class CannotMountError(Exception):
    """This computer does not let us mount a file system of our own; the message says what to do."""


class Machine:
    """`root` is its disk, between a `start` and the `cut` that ends it."""

    def __init__(self, directory: Path) -> None:
        self._image = directory / "image"
        self.root = directory / "root"
        self.root.mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, writes_back: bool = True) -> None:
        """Mount what the disk has kept.

        Args:
            writes_back: whether the kernel gathers writes until it is told to sync.
        """
        _check_that_we_can_mount()
        cache = "back" if writes_back else "through"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.powercut.amnesia_fs", self._image, self.root, cache],
            cwd=_PROJECT,
            stdin=subprocess.PIPE,
        )
        deadline_s = time.monotonic() + _START_S
        while not self.root.is_mount():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise CannotMountError("The file system did not start; see what it says above.")
            time.sleep(_POLL_S)

    def cut(self, seed: int | None = None) -> None:
        """Cut its power, and leave it off.

        Args:
            seed: chooses what of all that was not synced is kept nevertheless; without it,
                nothing is.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        if seed is None:
            self._process.kill()
        else:
            self._process.stdin.write(b"%d\n" % seed)
            self._process.stdin.flush()
        self._process.wait()
        self._process.stdin.close()
        self._process = None
        subprocess.run(["fusermount3", "-u", "-z", self.root], check=True)

    def destroy(self) -> None:
        """Give back whatever it holds, however far it came."""
        if self._process is not None:
            self.cut()
        shutil.rmtree(self.root.parent)


def _check_that_we_can_mount() -> None:
    if not shutil.which("fusermount3"):
        raise CannotMountError("There is no fusermount3. On Debian: apt-get install fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise CannotMountError(
            "/dev/fuse is missing, or closed to us. In a container, it takes "
            "`--device /dev/fuse --cap-add SYS_ADMIN`; elsewhere, `modprobe fuse` as root."
        )
