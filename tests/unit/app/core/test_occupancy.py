import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.core.occupancy import OccupiedError, alone, occupied
from app.core.settings import Settings


def test_the_parts_of_the_service_are_there_together(settings: Settings) -> None:
    with occupied(settings), occupied(settings):
        pass


def test_who_wants_to_be_alone_must_be(settings: Settings) -> None:
    with occupied(settings), pytest.raises(OccupiedError, match="Stop both"), alone(settings):
        pass
    with alone(settings):
        pass


def test_nobody_comes_in_while_one_is_alone(settings: Settings) -> None:
    with alone(settings):
        with pytest.raises(OccupiedError, match="being restored"), occupied(settings):
            pass
        with pytest.raises(OccupiedError), alone(settings):
            pass


def test_a_process_that_is_killed_occupies_nothing(settings: Settings) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from app.core.occupancy import occupied\n"
        "from app.core.settings import Settings\n"
        "with occupied(Settings(_env_file=None, data_dir=Path(sys.argv[1]))):\n"
        "    print('there', flush=True); sys.stdin.read()\n"
    )
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", program, str(settings.data_dir)],
                cwd=Path(__file__).parents[4],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        with pytest.raises(OccupiedError), alone(settings):
            pass
        process.kill()
        process.wait()

        with alone(settings):
            pass
