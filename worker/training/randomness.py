"""Every random number of a job: a function of the seed and the step that draws it.

Nothing depends on what was drawn before, so a resumed job draws what an uninterrupted one draws.
"""

import random

import numpy as np
import torch
from torch.utils import deterministic


def make_deterministic(seed: int, *, threads: int) -> None:
    """Seed every generator of the process, and fix what else can change a result.

    Args:
        seed: seed of the job.
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
    """Seed torch by a key, such as seed and step, so that each key has its own numbers."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def shuffled(examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch reads the examples. The first epoch is 0."""
    return np.random.default_rng([seed, epoch]).permutation(examples)
