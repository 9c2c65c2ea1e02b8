"""The files of a checkpoint that a user downloads."""

import json
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file

from app.core.job.loss_log import csv_lines, json_lines
from app.core.job.training_config import JobSpec
from worker.training.artifacts.loss_log_file import LossLogFile
from worker.training.artifacts.loss_plot import draw_losses
from worker.training.artifacts.model_card import write_model_card

ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"

_TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def write_artifacts(
    directory: Path,
    *,
    spec: JobSpec,
    step: int,
    model: PeftModel,
    base_model: Path,
    log: LossLogFile,
) -> None:
    """Write the adapter, its tokenizer, the loss log and what explains them.

    Args:
        directory: empty.
        spec: the job.
        step: optimizer steps the adapter has taken.
        model: holds the adapter.
        base_model: directory of the base model, whose tokenizer files are copied as they are:
            written anew they would name classes that only the newest transformers knows.
        log: every step so far.
    """
    write_adapter(directory, model)
    for name in _TOKENIZER_NAMES:
        if (base_model / name).is_file():
            shutil.copyfile(base_model / name, directory / name)
    settings = spec.config.model_dump_json(indent=2)
    (directory / "training_config.json").write_text(settings + "\n", encoding="utf-8")
    with (directory / "metrics.csv").open("w", encoding="utf-8") as table:
        table.writelines(csv_lines(log))
    with (directory / "metrics.jsonl").open("w", encoding="utf-8") as table:
        table.writelines(json_lines(log))
    title = f"Loss of {spec.fine_tuned_model}"
    (directory / "loss.svg").write_text(draw_losses(log, title=title), encoding="utf-8")
    card = write_model_card(spec, step=step, rows=log.sample(20))
    (directory / "README.md").write_text(card, encoding="utf-8")


def write_adapter(directory: Path, model: PeftModel) -> None:
    """Write the adapter under the names and keys that `PeftModel.from_pretrained` reads."""
    # Embeddings are never resized; with "auto", peft would ask a model hub whether they were.
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(weights, directory / ADAPTER_WEIGHTS_NAME, metadata={"format": "pt"})
    settings: dict[str, Any] = model.active_peft_config.to_dict() | {"inference_mode": True}
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, of no fixed order
    text = json.dumps(settings, indent=2, sort_keys=True)
    (directory / ADAPTER_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
