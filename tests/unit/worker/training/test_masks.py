"""What is learned with chat templates of many families, token by token."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from app.core.dataset.formats import ChatExample
from tests.chat_families import (
    CONVERSATIONS,
    FAMILIES,
    TODAY,
    build_encoder,
    build_tokenizer,
    mark_learned,
    read_template,
    trl_file,
)
from worker.training.data.chat_template import ChatTemplate, ChatTemplateError
from worker.training.data.encoding import Encoded


def test_at_least_30_families_are_tried() -> None:
    assert len(FAMILIES) >= 30


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_what_the_model_has_to_write_is_learned(family: str, conversation: str) -> None:
    assert mark_rows(family, CONVERSATIONS[conversation]) == FAMILIES[family][conversation]


def test_a_system_prompt_that_moves_to_the_last_question_is_given_with_each_answer() -> None:
    single, several = CONVERSATIONS["system"], CONVERSATIONS["multi_turn"]
    messages = [*single.messages[:1], *several.messages]

    rows = mark_rows("mistral_v0_3", ChatExample(messages, [False, *several.is_learned]))

    assert rows == [
        "<s>[INST] S\n\nQ1[/INST]« R1</s>»",
        "<s>[INST] Q1[/INST] R1</s>[INST] S\n\nQ2[/INST]« R2</s>»",
    ]


def mark_rows(family: str, example: ChatExample) -> str | list[str]:
    """The only row or all rows of a conversation, or why it is refused."""
    tokenizer = build_tokenizer(family)
    try:
        encoded = build_encoder(family, tokenizer).encode(example)
    except ChatTemplateError as error:
        return f"REFUSED: {error}"
    rows = [mark_learned(row, tokenizer) for row in encoded]
    return rows if len(rows) > 1 else rows[0]


AFTER_THE_STOP = ("\n",)
"""White space after the token that stops the model. No model writes it."""
HEADER = ("<|start|>assistant",)
"""The prompt, which an inference server writes."""

TRAINING_TEMPLATES = {"lfm2_2_5_v2": "lfm2_2_5_v2"}
"""Templates that have masks of their own; TRL trains the others with another template."""

LEARNED_BY_TRL_ONLY = {
    "cohere": (),
    "gemma": AFTER_THE_STOP,
    "gemma3": AFTER_THE_STOP,
    "glm4moe": (),
    "gptoss": HEADER,
    "lfm2_2_5_v2": AFTER_THE_STOP,
    "llama3": (),
    "muse_glimmer": HEADER,
    "phi3": (*AFTER_THE_STOP, "\n<|endoftext|>"),  # this model stops at <|end|>
    "qwen2_5": AFTER_THE_STOP,  # and, by the same text, the line feed before an answer
    "qwen3": AFTER_THE_STOP,
    "qwen3_5_think": (*AFTER_THE_STOP, "<think>\n"),  # the prompt ends with it
    "qwen3_instruct_2507": AFTER_THE_STOP,
}
"""Why the masks of TRL's own templates for training are wider.

The rest is not compared. `deepseek_*` and `nemotron_*`: TRL leaves out the thought that the prompt
begins. Conversations that become several rows: TRL trains on one text, in which earlier answers are
not what the model writes at inference.
"""


def mask_of_trl(family: str, example: ChatExample) -> tuple[list[int], list[bool]]:
    """Tokens and mask as `SFTTrainer` makes them with `assistant_only_loss`."""
    tokenizer = build_tokenizer(family)
    messages = ChatTemplate(tokenizer, today=TODAY).adapt(example.messages)
    training_template = TRAINING_TEMPLATES.get(family, f"{family}_training")
    tokenizer.chat_template = read_template(trl_file(training_template))
    ChatTemplate(tokenizer, today=TODAY)  # stops its clock
    encoded: Any = tokenizer.apply_chat_template(
        messages,
        tools=example.tools,  # pyright: ignore[reportArgumentType] - it takes any mapping
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    return encoded["input_ids"], [bool(is_learned) for is_learned in encoded["assistant_masks"]]


@pytest.mark.parametrize("family", LEARNED_BY_TRL_ONLY)
def test_trl_learns_the_same_and_what_no_model_generates(family: str) -> None:
    tokenizer = build_tokenizer(family)
    conversations = {
        name: example
        for name, example in CONVERSATIONS.items()
        if name != "weight_0"  # TRL has no weights
        and isinstance(FAMILIES[family][name], str)
        and not FAMILIES[family][name].startswith("REFUSED")
    }

    assert {"single_turn", "weight_0"} & conversations.keys() == {"single_turn"}
    for example in conversations.values():
        (ours,) = build_encoder(family, tokenizer).encode(example)
        input_ids, theirs = mask_of_trl(family, example)
        assert input_ids == ours.input_ids
        only_ours = [o and not t for o, t in zip(ours.is_learned, theirs, strict=True)]
        only_theirs = [t and not o for o, t in zip(ours.is_learned, theirs, strict=True)]
        assert not any(only_ours)
        assert runs(input_ids, only_theirs, tokenizer) <= set(LEARNED_BY_TRL_ONLY[family])


def runs(
    input_ids: list[int], mask: Sequence[bool], tokenizer: PreTrainedTokenizerFast
) -> set[str]:
    marked = mark_learned(Encoded(input_ids, list(mask)), tokenizer)
    return set(re.findall("«(.*?)»", marked, re.DOTALL))
