"""TRL's `DPOTrainer`, with the reference computed before training, as Tunery does it."""

import json
import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from benchmarks.trainers.child import main
from benchmarks.trainers.hugging_face import StepClock, count_tokens
from benchmarks.trainers.task import LORA, PAIRS_NAME, Run, Task
from benchmarks.trainers.trl_sft import settings_of
from benchmarks.trainers.trl_variants import VARIANTS


def train(task: Task) -> Run:
    torch.set_num_threads(task.threads)
    variant = VARIANTS[task.variant]
    rows = (task.data_dir / PAIRS_NAME).read_text("utf-8").splitlines()
    clock = StepClock()
    trainer = count_tokens(DPOTrainer, clock)(
        model=task.model,
        args=DPOConfig(
            **settings_of(variant, task),
            precompute_ref_log_probs=True,
            disable_dropout=False,
        ),
        train_dataset=Dataset.from_list([json.loads(row) for row in rows]),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.train()
    return Run(ticks=clock.ticks, more={"log": trainer.state.log_history})


if __name__ == "__main__":
    main(train, sys.argv[1:])
