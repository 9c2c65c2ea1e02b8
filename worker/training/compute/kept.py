"""Whether a job keeps the outputs of the layers below its first adapter on the disk.

They are the same in every step, so they need not be computed again. What is kept differs in its
last bits from what the micro-batch of a step would compute. So the choice depends on the job alone,
and not on what is free: a resumed job chooses as its first attempt did.
"""

from worker.training.compute.plan import ComputePlan

_LEAST_PASSES = 2.0
"""Passes over a dataset from which on its outputs are kept: one more computes them."""
_LEAST_PART = 0.25
"""Part of the layers that must lie below the first adapter. Fewer save too little time."""
_MOST_BYTES = 10_000_000_000
"""Largest file of outputs, in bytes. A training process may write larger ones: `Limits.file_bytes`
in `worker/launch/sandbox/confinement.py`."""


def kept_bytes(plan: ComputePlan, *, tokens: int, passes: float) -> int:
    """Bytes that the outputs for a dataset take on the disk. 0 if they are not kept.

    Args:
        plan: how the job is computed.
        tokens: tokens of the dataset.
        passes: how often the whole job reads it.
    """
    footprint = plan.footprint
    size = tokens * footprint.state_bytes
    is_kept = (
        plan.forward == "fast"
        and plan.device == "cpu"
        and passes >= _LEAST_PASSES
        and footprint.lower_layers >= _LEAST_PART * footprint.model.layers
        and size <= _MOST_BYTES
    )
    return size if is_kept else 0
