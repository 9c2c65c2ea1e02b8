"""What training should compute, as plainly as it can be written: float32, one row at a time.

The loss of an optimizer step is summed over its learned tokens and divided once. Examples come in
Tunery's order, and the adapter starts from the same numbers; dropout draws its own.
"""

import sys
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.trainers.child import main
from benchmarks.trainers.conversations import Row, read_rows
from benchmarks.trainers.task import (
    CHATS_NAME,
    LEARNING_RATE,
    LORA,
    VALIDATION_NAME,
    Run,
    Task,
)
from benchmarks.trainers.tunery import order_of_steps, seed_adapter


def train(task: Task) -> Run:
    """Train and evaluate; or evaluate the adapter of the task, and train nothing."""
    torch.set_num_threads(task.threads)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    read = partial(read_rows, tokenizer=tokenizer, max_tokens=task.max_tokens)
    validation = read(task.data_dir / VALIDATION_NAME)
    base = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    if task.adapter:
        tuned = PeftModel.from_pretrained(base, task.adapter)
        return Run(ticks=[], more={"valid_loss": evaluate(tuned, validation)})

    seed_adapter(task.seed)
    model = get_peft_model(base, LoraConfig(**LORA, task_type="CAUSAL_LM"))
    before = evaluate(model, validation)
    _train(model, read(task.data_dir / CHATS_NAME), task)
    return Run(ticks=[], more={"before": before, "valid_loss": evaluate(model, validation)})


def evaluate(model: PeftModel, rows: list[Row]) -> float:
    """Nats per learned token."""
    model.eval()
    with torch.no_grad():
        total = sum(_summed_loss(model, row).item() for row in rows)
    return total / sum(row.learned for row in rows)


def _train(model: PeftModel, rows: list[Row], task: Task) -> None:
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    steps = order_of_steps(len(rows), task)
    model.train()
    for taken, indices in enumerate(steps):
        batch = [rows[index] for index in indices]
        learned = sum(row.learned for row in batch)
        for row in batch:
            (_summed_loss(model, row) / learned).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - taken / len(steps))
        optimizer.step()
        optimizer.zero_grad()


def _summed_loss(model: PeftModel, row: Row) -> Any:
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
    predicted = logits[row.first_learned - 1 : -1]
    targets = torch.tensor(row.input_ids[row.first_learned :])
    return nn.functional.cross_entropy(predicted, targets, reduction="sum")


if __name__ == "__main__":
    main(train, sys.argv[1:])
