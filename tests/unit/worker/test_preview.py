"""Rows as a base model will see them, token by token."""

import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from app.core.dataset.tokenizing.messages import (
    MAX_TOKENS_SHOWN,
    Preview,
    PreviewedExample,
    PreviewRequest,
    Refused,
)
from tests.builders import build_config
from tests.tiny import CHAT_TEMPLATE, REWRITING_TEMPLATE, build_tokenizer, chat_row
from worker.tokenizing.preview import preview

ANSWER = "Four, très 🚢."
TURN = f"<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>\n"


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    build_tokenizer(CHAT_TEMPLATE).save_pretrained(tmp_path)
    return tmp_path


def show(
    base_model: Path, *rows: dict[str, Any], only: tuple[int, ...] = (1,), **hyperparameters: Any
) -> Preview:
    answer = ask(base_model, *rows, only=only, **hyperparameters)
    assert isinstance(answer, Preview)
    return answer


def ask(
    base_model: Path, *rows: dict[str, Any], only: tuple[int, ...] = (1,), **hyperparameters: Any
) -> Preview | Refused:
    request = PreviewRequest(
        base_model=base_model,
        data_dir=base_model,
        sandbox="off",
        config=build_config(template_date=date(2026, 1, 31), **hyperparameters),
        rows=only,
    )
    content = "".join(json.dumps(row) + "\n" for row in rows)
    return preview(request, io.BytesIO(content.encode()))


def show_example(base_model: Path, row: dict[str, Any], **hyperparameters: Any) -> PreviewedExample:
    (shown,) = show(base_model, row, **hyperparameters).rows
    (example,) = shown.examples
    return example


def text_of(example: PreviewedExample, *, is_learned: bool | None = None) -> str:
    chosen = (each for each in example.tokens if is_learned in (None, each.is_learned))
    return "".join(token.text for token in chosen)


def test_the_tokens_are_the_whole_text_and_the_answer_is_learned(base_model: Path) -> None:
    example = show_example(base_model, chat_row("2 + 2?", ANSWER))

    assert text_of(example) == TURN
    assert text_of(example, is_learned=True) == f"{ANSWER}<|im_end|>"
    assert example.learned_tokens == len(ANSWER.encode()) + 1
    assert (example.outcome, example.learns_stop) == ("kept", True)


def test_the_last_token_of_a_character_has_all_of_it(base_model: Path) -> None:
    example = show_example(base_model, chat_row("2 + 2?", ANSWER))

    at = next(i for i, token in enumerate(example.tokens) if token.text == "🚢")
    assert [token.text for token in example.tokens[at - 3 : at + 1]] == ["", "", "", "🚢"]


def test_each_answer_of_a_preference_has_half_of_the_tokens_that_are_shown(
    base_model: Path,
) -> None:
    long = {"prompt": "x" * MAX_TOKENS_SHOWN, "chosen": "a", "rejected": "b"}

    (row,) = show(base_model, long, max_sequence_tokens=4 * MAX_TOKENS_SHOWN).rows

    assert [len(each.tokens) for each in row.examples] == [MAX_TOKENS_SHOWN // 2] * 2
    assert [each.total_tokens for each in row.examples] == [MAX_TOKENS_SHOWN + 2] * 2
    assert row.is_cut


def test_a_preference_that_differs_after_the_limit_is_told(base_model: Path) -> None:
    row = {"prompt": "x", "chosen": "a" * 20 + "b", "rejected": "a" * 20 + "c"}

    (shown,) = show(base_model, row, max_sequence_tokens=16).rows

    assert [each.outcome for each in shown.examples] == ["equal_answers"] * 2
    assert [each.learned_tokens for each in shown.examples] == [0, 0]


def test_what_the_template_leaves_out_of_an_answer_is_told(base_model: Path) -> None:
    row = chat_row("2 + 2?", "Four.")
    row["messages"][1]["reasoning_content"] = "Counting."

    assert not show_example(base_model, row).is_whole
    assert show_example(base_model, chat_row("2 + 2?", "Four.")).is_whole


def test_special_tokens_are_told_from_text(base_model: Path) -> None:
    example = show_example(base_model, chat_row("2 + 2?", ANSWER))

    special = [token.text for token in example.tokens if token.is_special]
    assert special == ["<|im_start|>", "<|im_end|>"] * 2


def test_only_the_rows_that_were_asked_for_are_shown(base_model: Path) -> None:
    rows = [{"text": f"row {number}"} for number in range(1, 10)]

    shown = show(base_model, *rows, only=(2, 7)).rows

    assert [(row.line, text_of(row.examples[0])) for row in shown] == [
        (2, "row 2<|im_end|>"),
        (7, "row 7<|im_end|>"),
    ]


@pytest.mark.parametrize(
    ("hyperparameters", "outcome", "learned", "shown", "learns_stop"),
    [
        ({"max_sequence_tokens": 40}, "truncated", 39, 40, False),
        ({"max_sequence_tokens": 40, "overlong_row_behavior": "drop"}, "dropped", 0, 51, False),
        ({"max_sequence_tokens": 40, "overlong_row_behavior": "error"}, "too_long", 0, 51, False),
        ({"max_sequence_tokens": 51}, "kept", 50, 51, True),
    ],
)
def test_a_long_row_is_treated_as_in_training(
    base_model: Path,
    hyperparameters: dict[str, Any],
    outcome: str,
    learned: int,
    shown: int,
    *,
    learns_stop: bool,
) -> None:
    example = show_example(base_model, {"text": "a" * 50}, **hyperparameters)

    assert (example.outcome, example.learned_tokens) == (outcome, learned)
    assert (len(example.tokens), example.total_tokens) == (shown, 51)
    assert example.learns_stop is learns_stop


def test_a_prompt_that_leaves_no_room_for_its_answer_teaches_nothing(base_model: Path) -> None:
    row = {"prompt": "a" * 50, "completion": "b"}

    assert show_example(base_model, row, max_sequence_tokens=40).outcome == "nothing_to_learn"


def test_what_is_trained_on_can_be_chosen(base_model: Path) -> None:
    example = show_example(base_model, chat_row("2 + 2?", "Four."), train_on="everything")

    first, *others = example.tokens
    assert not first.is_learned  # nothing predicts it
    assert all(token.is_learned for token in others)


def test_a_row_with_too_many_tokens_is_cut_and_says_so(base_model: Path) -> None:
    long = {"text": "a" * (MAX_TOKENS_SHOWN + 1)}
    fits = {"text": "a" * (MAX_TOKENS_SHOWN - 1)}

    rows = show(base_model, long, fits, only=(1, 2), max_sequence_tokens=4096).rows

    assert [len(row.examples[0].tokens) for row in rows] == [MAX_TOKENS_SHOWN] * 2
    assert [row.is_cut for row in rows] == [True, False]
    assert rows[0].examples[0].total_tokens == MAX_TOKENS_SHOWN + 2


def test_a_chat_whose_history_is_rewritten_becomes_an_example_for_each_answer(
    base_model: Path,
) -> None:
    build_tokenizer(REWRITING_TEMPLATE).save_pretrained(base_model)
    turns = [*chat_row("A?", "one")["messages"], *chat_row("B?", "two")["messages"]]

    (row,) = show(base_model, {"messages": turns}).rows

    learned = [text_of(example, is_learned=True) for example in row.examples]
    assert learned == ["one<|im_end|>", "two<|im_end|>"]
    assert all(text_of(example).startswith("2026-01-31\n") for example in row.examples)


def test_a_row_that_the_template_refuses_has_an_error_and_the_others_are_shown(
    base_model: Path,
) -> None:
    refusing = "{% if messages[0]['content'] == 'No' %}{{ 1 // 0 }}{% endif %}" + CHAT_TEMPLATE
    build_tokenizer(refusing).save_pretrained(base_model)

    rows = show(base_model, chat_row("No", "a"), chat_row("Yes", "b"), only=(1, 2)).rows

    assert rows[0].error
    assert (rows[0].error.line, rows[0].error.code) == (1, "chat_template_unsupported")
    assert rows[0].examples == ()
    assert text_of(rows[1].examples[0], is_learned=True) == "b<|im_end|>"


def test_a_base_model_without_a_template_refuses_chats_and_reads_texts(base_model: Path) -> None:
    (base_model / "chat_template.jinja").unlink()

    refused = ask(base_model, chat_row("a", "b"))

    assert isinstance(refused, Refused)
    assert (refused.code, refused.param) == ("no_chat_template", "model")
    assert show_example(base_model, {"text": "a"}).outcome == "kept"


def test_an_end_at_which_the_base_model_does_not_stop_is_warned_of(base_model: Path) -> None:
    template = CHAT_TEMPLATE.replace("<|im_end|>", "<|stop|>")
    build_tokenizer(template).save_pretrained(base_model)

    shown = show(base_model, chat_row("a", "b"))

    assert shown.stop == "<|stop|>"
    assert "have the inference server stop at <|stop|>" in shown.warnings[0]
    assert show(base_model, {"text": "a"}).warnings == ()
