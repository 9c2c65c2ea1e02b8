"""Ask a model the same questions without and with an adapter: plain transformers and peft."""

import os
import shutil
import textwrap
import warnings
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

MAX_ANSWER_TOKENS = 48
"""An answer that goes on is cut here, and shows it."""


@dataclass(frozen=True, slots=True)
class Answers:
    question: str
    base: str
    tuned: str


def ask_both(questions: list[str], *, base_dir: Path, adapter_dir: Path) -> list[Answers]:
    """The answers of the base model, and of the same model with the adapter; never at random."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # all files are here
    # peft 0.21 reads a name that transformers 5.23 renamed; drop with the next peft.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    # Imported here, because these take seconds and the rest of the demo needs none of them.
    import torch  # noqa: PLC0415
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(adapter_dir)).eval()

    answers: list[Answers] = []
    for question in questions:
        with model.disable_adapter():
            before = _ask(model, tokenizer, question)
        answers.append(Answers(question, before, _ask(model, tokenizer, question)))
    return answers


def _ask(model: Any, tokenizer: Any, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(
        **prompt,
        max_new_tokens=MAX_ANSWER_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    answer_ids = output[0, prompt["input_ids"].shape[1] :]
    is_cut = answer_ids[-1] != tokenizer.eos_token_id
    answer = tokenizer.decode(answer_ids, skip_special_tokens=True)
    return " ".join(answer.split()) + (" ..." if is_cut else "")


def side_by_side(answers: list[Answers]) -> str:
    """The answers as text in two columns, as wide as the terminal allows."""
    width = (min(shutil.get_terminal_size((100, 24)).columns, 120) - 3) // 2
    lines = [f"{'BASE MODEL':<{width}} | WITH THE ADAPTER"]
    for both in answers:
        lines += ["-" * (2 * width + 3), f"> {both.question}"]
        columns = (textwrap.wrap(text, width) for text in (both.base, both.tuned))
        lines += [f"{a:<{width}} | {b}".rstrip() for a, b in zip_longest(*columns, fillvalue="")]
    return "\n".join(lines)
