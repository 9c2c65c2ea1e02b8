"""The configurations of TRL that are tried, by name."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    weights: Precision = "bfloat16"
    """What the base model is loaded in. The adapter is in float32 in any case."""
    compute: Precision = "bfloat16"
    """bfloat16: under autocast."""
    rows: int = 1
    """Of a micro-batch; as many of these as it takes form an optimizer step."""
    is_packed: bool = False
    is_grouped: bool = False
    """Whether rows of like length form a micro-batch, which changes what forms a step."""
    is_compiled: bool = False


VARIANTS = {
    "fp32-1": Variant(weights="float32", compute="float32"),
    "fp32-2": Variant(weights="float32", compute="float32", rows=2),
    "fp32-4": Variant(weights="float32", compute="float32", rows=4),
    "fp32-8": Variant(weights="float32", compute="float32", rows=8),
    "autocast-1": Variant(weights="float32"),
    "autocast-4": Variant(weights="float32", rows=4),
    "bf16-1": Variant(),
    "bf16-2": Variant(rows=2),
    "bf16-4": Variant(rows=4),
    "bf16-8": Variant(rows=8),
    "bf16-2-grouped": Variant(rows=2, is_grouped=True),
    "bf16-4-grouped": Variant(rows=4, is_grouped=True),
    "bf16-8-grouped": Variant(rows=8, is_grouped=True),
    "bf16-1-packed": Variant(is_packed=True),
    "fp32-1-packed": Variant(weights="float32", compute="float32", is_packed=True),
    "bf16-1-compiled": Variant(is_compiled=True),
}
"""All with the loss that TRL 1.16 has made its only plain one, computed in chunks: its name was
`loss_type="chunked_nll"` before, and is `"nll"` now."""

BEST = {"native": "bf16-1", "avx512": "fp32-1", "avx2": "fp32-1"}
"""By instruction set. The first is the fastest that was found on a processor with bfloat16; the
others are what is left without. `search` finds them again."""

TOO_SLOW_TO_SEARCH = {"bf16-1-compiled"}
"""It compiles again for every length, for minutes; ask for it by name."""
