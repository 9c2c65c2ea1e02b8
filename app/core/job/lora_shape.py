"""The adapter of a job: its hyperparameters, and the adapter that it continues."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from app.core.job.frozen import Frozen

LoraInitialisation = Literal["kaiming", "gaussian", "orthogonal", "pissa_niter_16", "olora"]
Embeddings = Literal["embed_tokens", "lm_head"]
MAX_LAYERS = 1000
"""More layers than any base model has."""


def _check_layers(value: Any) -> Any:
    """Tell what is wrong in one sentence: an error for each type of the field would confuse."""
    is_list = isinstance(value, list | tuple)
    numbers: list[Any] = [*value] if is_list else [value]
    least = 0 if is_list else 1
    are_valid = all(type(each) is int and least <= each <= MAX_LAYERS for each in numbers)
    if value is not None and not (numbers and are_valid):
        raise PydanticCustomError(
            "layers",
            "Input should be the number of the last layers that get an adapter, at least 1, or a "
            "list of the indices of layers, from 0",
        )
    return value


_LastLayers = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
_Layers = Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_LAYERS)], ...], Field(min_length=1)]


class LoraShape(Frozen):
    """Shape of the adapter, in the terms of Hu et al. 2021 (arXiv:2106.09685)."""

    rank: int = Field(default=64, ge=1, le=256)
    """Rank of the adapter: the inner dimension r of the update BA."""

    alpha: float = Field(default=16.0, gt=0, le=1024)
    """Numerator of the adapter's scaling factor. Its denominator is the rank of the adapter."""

    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Probability that an input of the adapter is zeroed during training."""

    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers that get an adapter."""

    use_rslora: bool = False
    """Whether alpha is divided by the root of the rank, as in rsLoRA (arXiv:2312.03732)."""

    use_dora: bool = False
    """DoRA (arXiv:2402.09353): the length of each row of a weight is trained too. It is slower."""

    init_lora_weights: LoraInitialisation = "kaiming"
    """Start of the adapter: `kaiming` for the usual uniform A matrices, `gaussian` for normal ones
    of standard deviation 1 / rank, both with B matrices of zeros. `orthogonal` fills both with
    random numbers whose product is zero, which needs an even rank. `pissa_niter_16` (PiSSA) and
    `olora` train a part of the base model's own weights; the adapter then has twice the rank."""

    modules_to_save: tuple[Embeddings, ...] = ()
    """Embeddings that are trained whole, to teach new special tokens or a new language:
    `embed_tokens` for those of the input, `lm_head` for those of the output. If the base model has
    one matrix for both, either name trains it. This takes much memory, and vLLM and llama.cpp can
    load the result only after it is merged into the base model."""

    layers: Annotated[_LastLayers | _Layers | None, BeforeValidator(_check_layers)] = None
    """Layers that get an adapter: a number for so many of the last ones, or a list of indices,
    where 0 is the first layer. Null for all. Layers below the first one with an adapter have no
    backward pass: training is faster and takes less memory, and its result is another one."""

    @field_validator("layers")
    @classmethod
    def _sort(cls, layers: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        return tuple(sorted(set(layers))) if isinstance(layers, tuple) else layers

    def adapted_layers(self, total: int) -> range | tuple[int, ...]:
        """Indices of the layers that get an adapter, of a base model with `total` layers.

        Raises:
            ValueError: the base model has fewer layers. The message says so, for the user.
        """
        if isinstance(self.layers, tuple):
            if self.layers[-1] >= total:
                raise ValueError(
                    f"'lora_layers' has {self.layers[-1]}, and the base model's layers are 0 to "
                    f"{total - 1}."
                )
            return self.layers
        last = total if self.layers is None else self.layers
        if last > total:
            raise ValueError(
                f"'lora_layers' is {last}, and the base model has only {total} layers."
            )
        return range(total - last, total)

    @property
    def starts_from_base(self) -> bool:
        """Whether the adapter starts as a part of the base model's weights."""
        return self.init_lora_weights in ("pissa_niter_16", "olora")

    @property
    def saved_rank(self) -> int:
        """Rank of the adapter in memory and in its files. It may be twice that which is trained."""
        return 2 * self.rank if self.starts_from_base else self.rank


class ParentAdapter(Frozen):
    """The adapter that a job continues. It may have been deleted once the job has ended."""

    model: str
    """Name of the tuned model, or of the checkpoint: `ft:...:ckpt-step-N`."""

    job_id: str
    """Id of the job that made the adapter."""

    checkpoint_id: str
    step: int
    """Number of optimizer steps that this job had taken."""

    sha256: str
    """Checksum of the file of weights, `adapter_model.safetensors`."""


class ImportedArchive(Frozen):
    """The archive that an adapter was imported from."""

    filename: str
    sha256: str
    """Checksum of the archive."""
