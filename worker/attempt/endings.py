"""What the end of a child means."""

import signal

from app.core.db.repositories.recovery import Crash
from worker.launch.launcher import Ending

MAKE_ROOM = "Make room on the disk, or choose fewer checkpoints."


def was_ended_by_us(ending: Ending) -> bool:
    """Whether it ended because it was told to, before it could say so itself."""
    return ending.was_killed or (ending.was_asked and ending.exit_code == -signal.SIGTERM)


def crash_of(ending: Ending) -> Crash:
    """What to tell the user of a child that died by itself."""
    if ending.exit_code == -signal.SIGKILL:
        return Crash(
            "The training process was killed, most likely because the machine ran out of memory",
            "Lower batch_size or context_length, or take a smaller base model.",
            ending.log_tail,
        )
    if ending.exit_code < 0:
        what = f"The training process died of {signal.Signals(-ending.exit_code).name}"
    else:
        what = f"The training process ended with exit code {ending.exit_code}"
    return Crash(what, "What its log says may help to find the cause.", ending.log_tail)
