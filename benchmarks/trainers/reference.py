"""The reference script, re-created with its faults: what Tunery's defaults come from.

float32, and every row padded to 512 tokens that are learned like text: the padding token is the
end-of-text token, and labels are a copy of the inputs. Do not mend it; `plain.py` is right.
"""

import sys
from typing import Any

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from benchmarks.trainers.child import main
from benchmarks.trainers.hugging_face import StepClock, count_tokens
from benchmarks.trainers.task import LEARNING_RATE, LORA, TEXTS_NAME, Run, Task


def train(task: Task) -> Run:
    # Not the script's own: whoever runs it can set these, and all trainers here have the same.
    torch.set_num_threads(task.threads)

    tokenizer = AutoTokenizer.from_pretrained(task.model, trust_remote_code=True)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        task.model, dtype=torch.float32, low_cpu_mem_usage=True
    )
    model = get_peft_model(model, LoraConfig(**LORA, bias="none", task_type="CAUSAL_LM"))
    model.print_trainable_parameters()

    def tokenize(rows: dict[str, list[str]]) -> dict[str, Any]:
        tokens: dict[str, Any] = tokenizer(
            rows["text"], truncation=True, padding="max_length", max_length=task.max_tokens
        )
        tokens["labels"] = tokens["input_ids"].copy()
        return tokens

    data = load_dataset(
        "json",
        data_files=str(task.data_dir / TEXTS_NAME),
        split="train",
        cache_dir=str(task.scratch_dir / "cache"),
    )
    assert isinstance(data, Dataset)
    data = data.map(tokenize, batched=True, remove_columns=["text"])

    clock = StepClock()
    trainer = count_tokens(Trainer, clock)(
        model=model,
        args=TrainingArguments(
            output_dir=str(task.scratch_dir / "qwen_finetune"),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=task.batch_size,
            learning_rate=LEARNING_RATE,
            num_train_epochs=3,
            max_steps=task.steps or -1,
            logging_steps=10,
            save_steps=500,
            fp16=False,
            use_cpu=True,
            seed=task.seed,
            report_to="none",
        ),
        train_dataset=data,
        callbacks=[clock],
    )
    trainer.train()
    return Run(ticks=clock.ticks, more={"log": trainer.state.log_history})


if __name__ == "__main__":
    main(train, sys.argv[1:])
