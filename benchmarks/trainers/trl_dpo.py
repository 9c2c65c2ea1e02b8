"""TRL's `DPOTrainer`, with the reference computed before training, as Tunery does it."""

import json
import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from benchmarks.trainers.child import main
from benchmarks.trainers.hugging_face import StepClock, count_tokens
from benchmarks.trainers.task import LEARNING_RATE, LORA, PAIRS_NAME, Run, Task
from benchmarks.trainers.trl_variants import VARIANTS


def train(task: Task) -> Run:
    torch.set_num_threads(task.threads)
    variant = VARIANTS[task.variant]
    rows = (task.data_dir / PAIRS_NAME).read_text("utf-8").splitlines()
    clock = StepClock()
    trainer = count_tokens(DPOTrainer, clock)(
        model=task.model,
        args=DPOConfig(
            output_dir=str(task.scratch_dir / "out"),
            model_init_kwargs={"dtype": variant.weights},
            bf16=variant.compute == "bfloat16",
            per_device_train_batch_size=variant.rows,
            gradient_accumulation_steps=max(1, task.batch_size // variant.rows),
            precompute_ref_log_probs=True,
            disable_dropout=False,
            learning_rate=LEARNING_RATE,
            max_length=task.max_tokens,
            num_train_epochs=3,
            max_steps=task.steps or -1,
            gradient_checkpointing=False,
            save_strategy="no",
            use_cpu=True,
            seed=task.seed,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([json.loads(row) for row in rows]),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.train()
    return Run(ticks=clock.ticks, more={"log": trainer.state.log_history})


if __name__ == "__main__":
    main(train, sys.argv[1:])
