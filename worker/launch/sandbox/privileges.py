"""Gives up capabilities, the way back to them, and the user."""

import itertools
import os

from app.core.machine.linux import (
    PR_CAP_AMBIENT,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_SECUREBITS,
    drop_capabilities,
    prctl,
)

_CLEAR_ALL = 4
_NOROOT_AND_LOCKED = 3
"""Securebits: user 0 gets no capabilities when it starts a program."""


def give_up_privileges(user: int | None) -> None:
    """Give up all capabilities for good, and become this user, with a group of the same number.

    Args:
        user: None to stay the same user.

    Raises:
        OSError: it could not be done.
    """
    _empty_bounding_set()
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        prctl(PR_SET_DUMPABLE, 1)  # or the process could not read what /proc says of it
    drop_capabilities()
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def _empty_bounding_set() -> None:
    """Let no program that is started later have a capability. Needs CAP_SETPCAP."""
    prctl(PR_CAP_AMBIENT, _CLEAR_ALL)
    try:
        prctl(PR_SET_SECUREBITS, _NOROOT_AND_LOCKED)
        for capability in itertools.count():
            prctl(PR_CAPBSET_DROP, capability)
    except OSError:
        return  # the last capability is dropped, or root was given none to drop them with
