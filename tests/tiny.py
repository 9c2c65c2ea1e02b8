"""Models and tokenizers made in code, small enough to train in a test: no network, no files.

A tiny random model with a frozen head cannot be overfitted at transformers' usual
`initializer_range` of 0.02, because its logits are too small; hence 0.3.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from app.core.job.artifacts import ADAPTER_WEIGHTS_NAME
from app.core.job.child.job_spec import (
    BASE_MODEL_NAME,
    JOB_SPEC_NAME,
    PARENT_NAME,
    TRAINING_DATA_NAME,
    VALIDATION_DATA_NAME,
    BaseModelRef,
    ComputeSettings,
    DatasetRef,
    JobSpec,
    TaskName,
)
from app.core.job.lora_shape import LoraShape, ParentAdapter
from app.core.job.training_config import TrainingConfig
from app.core.manifest import sha256_of
from benchmarks.support.samples import catalogue_entry
from tests.models import install_models
from worker.training.artifacts.checkpoint import write_adapter
from worker.training.data.dataset import IGNORE_INDEX, TokenizedData, TokenizedRow
from worker.training.model.base_model import attach_adapter, trainable_parameters
from worker.training.model.forward import FusedForward
from worker.training.step.trainer import StepSchedule, Trainer

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, without a default system prompt."""

REWRITING_TEMPLATE = "{{ strftime_now('%Y-%m-%d') }}\n" + CHAT_TEMPLATE.replace(
    "message['content']",
    "(message['content'] if loop.last or message['role'] == 'user' else 'earlier')",
)
"""Writes the date, and an answer differently once another message follows."""

END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", END_OF_TURN)
VOCABULARY = 256 + len(SPECIAL_TOKENS)

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Every linear layer of these models."""

BASE_MODEL = BaseModelRef(
    id="tiny", repo="org/tiny", revision="c" * 40, licence="Apache-2.0", sha256="b" * 64
)


torch.set_num_threads(1)  # tensors this small gain nothing from threads but waiting for each other


def build_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, and three special ones; any text can be written in it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL_TOKENS[0], eos_token=END_OF_TURN
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def build_model(model_type: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A two-layer model of one architecture, with random weights that depend on `seed` alone."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 258,
        "pad_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(model_type, **(settings | changes))
        return AutoModelForCausalLM.from_config(config)


def write_tiny_model(
    directory: Path, *, chat_template: str | None = CHAT_TEMPLATE, **changes: Any
) -> None:
    """Write a base model as it is on a hub: configuration, tokenizer, safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    build_model(**changes).save_pretrained(directory)
    build_tokenizer(chat_template).save_pretrained(directory)


def install_tiny_model(data_dir: Path, *, source: Path) -> None:
    """Give a data directory a catalogue with one base model, `tiny`, and install it from `source`.

    Args:
        source: directory to write the model to; its name is a part of the model's record.
    """
    write_tiny_model(source)
    entry = catalogue_entry(
        "tiny",
        source={"kind": "directory", "path": str(source)},
        licence="Apache-2.0",
        target_modules=ALL_LINEAR,
    )
    install_models(data_dir, entry)


def build_peft_model(
    model_type: str = "llama",
    *,
    target_modules: tuple[str, ...] = ("q_proj", "v_proj"),
    dropout: float = 0.0,
    is_trained: bool = True,
    seed: int = 0,
    variant: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> PeftModel:
    """A tiny model with an adapter, in training mode; a trained one is not the identity."""
    base = build_model(model_type, seed=seed, **changes)
    usual = {"rank": 4, "alpha": 8, "dropout": dropout, "target_modules": target_modules}
    shape = LoraShape(**(usual | dict(variant)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = attach_adapter(base, shape, BASE_MODEL)
        for name, parameter in model.named_parameters():
            if is_trained and "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


class RowsInMemory(TokenizedData):
    def __init__(self, rows: Sequence[TokenizedRow]) -> None:
        self._rows = rows
        self.lengths = np.array([len(row.input_ids) for row in rows])
        self.learned = np.array([int((row.labels != IGNORE_INDEX).sum()) for row in rows])
        self.lines = np.arange(1, len(rows) + 1)
        self.sha256 = "d" * 64

    def read(self, index: int) -> TokenizedRow:
        return self._rows[index]


def build_trainer(model: PeftModel) -> Trainer:
    """One that may take three steps."""
    config = TrainingConfig(seed=0)
    schedule = StepSchedule(config, examples=4, has_validation=False)
    tokens = [np.arange(8) + row for row in range(4)]
    data = RowsInMemory([TokenizedRow(row, row) for row in tokens])
    return Trainer(
        FusedForward(model),
        data,
        config,
        schedule=schedule,
        pad_token_id=0,
        micro_batch_tokens=512,
    )


def write_job(
    directory: Path,
    rows: Sequence[dict[str, Any]],
    *,
    base_model: Path,
    validation: Sequence[dict[str, Any]] | None = None,
    compute: ComputeSettings | None = None,
    task: TaskName = "train",
    memory_bytes: int | None = None,
    **settings: Any,
) -> JobSpec:
    """Fill a job directory as the worker does.

    Args:
        directory: to be made.
        rows: of the training file.
        base_model: its directory.
        validation: rows of the validation file, if there is one.
        compute: in float32 and not compiled unless given, on every machine.
        task: what the child is to do.
        memory_bytes: memory for jobs. None for all.
        settings: of the `TrainingConfig`.
    """
    directory.mkdir(parents=True)
    (directory / BASE_MODEL_NAME).symlink_to(base_model)
    spec = JobSpec(
        task=task,
        job_id="ftjob-1",
        attempt=1,
        fine_tuned_model="ft:tiny:org:suffix:1",
        base_model=BASE_MODEL,
        training_file=_write_rows(directory / TRAINING_DATA_NAME, rows),
        validation_file=(
            None
            if validation is None
            else _write_rows(directory / VALIDATION_DATA_NAME, validation)
        ),
        config=TrainingConfig(**{"seed": 7, "lora": LoraShape(rank=4), **settings}),
        threads=1,
        memory_bytes=memory_bytes,
        compute=ComputeSettings(dtype="float32", compile=False) if compute is None else compute,
    )
    (directory / JOB_SPEC_NAME).write_text(spec.model_dump_json(), encoding="utf-8")
    return spec


def change_job(directory: Path, **changes: Any) -> None:
    """Change what the child is told in `job.json`."""
    path = directory / JOB_SPEC_NAME
    spec = JobSpec.model_validate_json(path.read_bytes()).model_copy(update=changes)
    path.write_text(spec.model_dump_json(), encoding="utf-8")


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> DatasetRef:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(content)
    return DatasetRef(
        file_id=f"file-{path.stem}",
        filename=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        examples=len(rows),
    )


def chat_row(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def write_parent(directory: Path, shape: LoraShape) -> ParentAdapter:
    """Put a trained adapter into a job directory, for its job to continue. Returns its record.

    Its whole folder is `parent` in the directory.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = attach_adapter(build_model(), shape, BASE_MODEL)
        for parameter in trainable_parameters(model):
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapter = directory / "parent"
    adapter.mkdir()
    write_adapter(adapter, model)
    weights = shutil.copyfile(adapter / ADAPTER_WEIGHTS_NAME, directory / PARENT_NAME)
    return ParentAdapter(
        model="ft:tiny:org::0",
        job_id="ftjob-0",
        checkpoint_id="ftckpt-0",
        step=3,
        sha256=sha256_of(weights),
    )
