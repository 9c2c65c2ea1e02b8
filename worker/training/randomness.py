"""Where every random number of a job comes from: its seed, and the step it is drawn in.

Nothing depends on what was drawn before, so a job that is resumed at a step draws what it would
have drawn there anyway.
"""

import random

import numpy as np
import torch
from torch.utils import deterministic


def make_deterministic(seed: int, *, threads: int) -> None:
    """Seed every generator of the process, and fix what else may change a result.

    Args:
        seed: of the job.
        threads: processor threads; sums are cut by thread, so their number is part of a result.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    # Would fill every fresh tensor with NaN to expose reads of it: a pass over memory for nothing.
    deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue] - a property of the module


def seed_torch(*key: int) -> None:
    """Start torch's random numbers at a place of their own: of a seed, a step and so on."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def shuffled(examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which epoch number `epoch`, from 0, reads the examples."""
    return np.random.default_rng([seed, epoch]).permutation(examples)
