"""TRL's `SFTTrainer`, the trainer most people would take, in the ways that it can be set up."""

import json
import sys
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from benchmarks.trainers.child import main
from benchmarks.trainers.hugging_face import StepClock, count_tokens
from benchmarks.trainers.task import LEARNING_RATE, LORA, PAIRS_NAME, Run, Task
from benchmarks.trainers.trl_variants import VARIANTS, Variant


def train(task: Task) -> Run:
    torch.set_num_threads(task.threads)
    variant = VARIANTS[task.variant]
    rows = (task.data_dir / PAIRS_NAME).read_text("utf-8").splitlines()
    clock = StepClock()
    trainer = count_tokens(SFTTrainer, clock)(
        model=task.model,
        args=SFTConfig(
            **settings_of(variant, task),
            packing=variant.is_packed,
            train_sampling_strategy="group_by_length" if variant.is_grouped else "random",
        ),
        train_dataset=Dataset.from_list([json.loads(row) for row in rows]),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.train()
    return Run(ticks=clock.ticks, more={"log": trainer.state.log_history})


def settings_of(variant: Variant, task: Task) -> dict[str, Any]:
    """The settings that every trainer of TRL has."""
    return {
        "output_dir": str(task.scratch_dir / "out"),
        "model_init_kwargs": {"dtype": variant.weights},
        "bf16": variant.compute == "bfloat16",
        "per_device_train_batch_size": variant.rows,
        "gradient_accumulation_steps": max(1, task.batch_size // variant.rows),
        "torch_compile": variant.is_compiled,
        "learning_rate": LEARNING_RATE,
        "max_length": task.max_tokens,
        "num_train_epochs": 3,
        "max_steps": task.steps or -1,
        # On by default, to save memory; what it saves it pays for with a third of the speed.
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "use_cpu": True,
        "seed": task.seed,
        "report_to": "none",
    }


if __name__ == "__main__":
    main(train, sys.argv[1:])
