"""What a child reports: both models answer, greedy, and their answers are scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.core.dataset.formats import ChatExample, PromptExample, TextExample
from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME
from app.core.job.artifacts import ADAPTER_CONFIG_NAME
from app.core.job.child.training_events import Failed, Progressed, Reported, TrainingEvent
from app.core.job.scores.report import AnswerReport
from app.core.sampling.messages import ChatPrompt, TextPrompt
from tests.reports import write_report_job
from tests.tiny import build_model, build_peft_model, build_tokenizer, chat_row
from worker.scoring.metrics import score
from worker.scoring.questions import as_question
from worker.scoring.report import report_answers
from worker.training.artifacts.checkpoint import load_adapter

CHATS = [chat_row(f"Question {number}", f'{{"answer": {number}}}') for number in range(4)]


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    build_model().save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory


def run(
    directory: Path,
    base_model: Path,
    rows: Sequence[dict[str, Any]] = CHATS,
    *,
    is_trained: bool = True,
    time_limit_s: float = 60.0,
    **changes: Any,
) -> list[TrainingEvent]:
    model = build_peft_model(is_trained=is_trained)
    write_report_job(directory, model, rows, base_model=base_model, **changes)
    events: list[TrainingEvent] = []
    report_answers(directory, events.append, time_limit_s=time_limit_s)
    return events


def report(*arguments: Any, **changes: Any) -> AnswerReport:
    *_, last = run(*arguments, **changes)
    assert isinstance(last, Reported), last
    return last.report


def greedy(base_model: Path, adapter: Path | None, prompt: str, tokens: int) -> str:
    """The beginning of the answer of `transformers` and `peft`."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model: Any = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    if adapter is not None:
        model = load_adapter(model, adapter)
    messages = [{"role": "user", "content": prompt}]
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    length = len(ids)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[length:], skip_special_tokens=True).rstrip("\ufffd")


def test_both_models_answer_as_peft_and_transformers_do(tmp_path: Path, base_model: Path) -> None:
    (pair,) = report(tmp_path / "job", base_model, prompts=["Question 1"]).answers

    adapter = tmp_path / "job" / ADAPTER_DIRECTORY_NAME
    assert pair.base.text.startswith(greedy(base_model, None, "Question 1", 4))
    assert pair.tuned.text.startswith(greedy(base_model, adapter, "Question 1", 4))
    assert pair.base.text != pair.tuned.text
    assert (pair.prompt, pair.reference) == ("Question 1", None)


def test_the_answers_to_the_validation_file_are_scored(tmp_path: Path, base_model: Path) -> None:
    made = report(tmp_path / "job", base_model, validation=CHATS)

    assert (made.source, made.examples, made.chosen_examples) == ("validation_file", 4, 4)
    assert (made.scored_examples, made.skipped_examples, made.json_references) == (4, 0, 4)
    assert {pair.reference for pair in made.answers} == {f'{{"answer": {n}}}' for n in range(4)}
    for scores, texts in (
        (made.base, [pair.base.text for pair in made.answers]),
        (made.tuned, [pair.tuned.text for pair in made.answers]),
    ):
        references = [pair.reference or "" for pair in made.answers]
        assert scores == score(list(zip(texts, references, strict=True)))
    assert not made.is_over_time
    assert made.processor_s > 0


def test_an_adapter_without_effect_answers_as_its_base_model(
    tmp_path: Path, base_model: Path
) -> None:
    made = report(tmp_path / "job", base_model, validation=CHATS, is_trained=False)

    assert made.base == made.tuned
    assert all(pair.base == pair.tuned for pair in made.answers)


def test_the_part_that_the_training_held_out_is_scored(tmp_path: Path, base_model: Path) -> None:
    made = report(tmp_path / "job", base_model, validation_split=0.5)

    assert (made.source, made.examples, made.scored_examples) == ("validation_split", 2, 2)


def test_no_more_than_fifty_examples_are_drawn_and_always_the_same(
    tmp_path: Path, base_model: Path
) -> None:
    rows = [chat_row(f"Question {number}", "a") for number in range(60)]

    first, second = (
        report(tmp_path / name, base_model, validation=rows) for name in ("one", "two")
    )

    assert (first.examples, first.chosen_examples, first.scored_examples) == (60, 50, 50)
    assert first.answers == second.answers
    assert len(first.answers) == 5


def test_after_the_time_limit_the_rest_is_not_scored(tmp_path: Path, base_model: Path) -> None:
    made = report(tmp_path / "job", base_model, validation=CHATS, time_limit_s=0.0)

    assert (made.scored_examples, made.base, made.tuned) == (0, None, None)
    assert made.is_over_time
    assert [pair.tuned.finish_reason for pair in made.answers] == [None] * 4


def test_prompts_of_the_request_are_shown_and_the_validation_file_is_scored(
    tmp_path: Path, base_model: Path
) -> None:
    made = report(tmp_path / "job", base_model, validation=CHATS, prompts=["One", "Two"])

    assert [pair.prompt for pair in made.answers] == ["One", "Two"]
    assert made.scored_examples == 4


def test_a_prompt_that_is_no_chat_is_continued(tmp_path: Path, base_model: Path) -> None:
    chat, text = (
        report(tmp_path / f"job-{are}", base_model, prompts=["One"], are_chats=are)
        for are in (True, False)
    )

    assert (text.source, text.scored_examples, text.base) == (None, 0, None)
    assert text.answers[0].base.text != chat.answers[0].base.text


def test_examples_that_cannot_be_read_are_skipped(tmp_path: Path, base_model: Path) -> None:
    rows = [*CHATS[:2], chat_row("x" * 20_000, "y")]

    made = report(tmp_path / "job", base_model, validation=rows)

    assert (made.chosen_examples, made.skipped_examples, made.scored_examples) == (3, 1, 2)


def test_texts_have_no_answer_to_compare_with(tmp_path: Path, base_model: Path) -> None:
    texts = [{"text": "To be, or not to be."}]

    *_, last = run(tmp_path / "job", base_model, texts, validation=texts)

    assert isinstance(last, Failed)
    assert (last.code, last.param) == ("nothing_to_score", "eval_prompts")


def test_a_prompt_that_does_not_fit_is_told_and_the_others_are_answered(
    tmp_path: Path, base_model: Path
) -> None:
    made = report(tmp_path / "job", base_model, prompts=["x" * 20_000, "Question 1"])

    refused, answered = made.answers
    assert "maximum context length is 512 tokens" in (refused.refusal or "")
    assert (refused.base.text, refused.tuned.finish_reason) == ("", None)
    assert (answered.refusal, answered.tuned.finish_reason) == (None, "length")
    assert not made.is_over_time


def test_an_adapter_that_the_sampler_does_not_know_fails_the_report(
    tmp_path: Path, base_model: Path
) -> None:
    job = tmp_path / "job"
    write_report_job(job, build_peft_model(), CHATS, base_model=base_model, prompts=["Hi"])
    (job / ADAPTER_DIRECTORY_NAME / ADAPTER_CONFIG_NAME).write_text('{"peft_type": "IA3"}')
    events: list[TrainingEvent] = []

    report_answers(job, events.append)

    last = events[-1]
    assert isinstance(last, Failed)
    assert last.code == "adapter_unsupported"


def test_progress_is_told_a_few_times(tmp_path: Path, base_model: Path) -> None:
    *progress, _ = run(tmp_path / "job", base_model, validation=CHATS)

    fractions = [event.fraction for event in progress if isinstance(event, Progressed)]
    assert len(fractions) == len(progress) <= 21
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_the_reference_of_a_chat_is_its_last_learned_answer() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Hm"},
    ]

    first = as_question(ChatExample(messages, [False, False, True, False, False]))
    last = as_question(ChatExample(messages, [False, False, True, False, True]))

    assert first is not None
    assert last is not None
    assert (first.reference, last.reference) == ("Ho", "Hm")
    assert isinstance(first.prompt, ChatPrompt)
    assert first.prompt.messages == tuple(messages[:2])
    assert first.shown == "system: Be brief.\n\nuser: Hi"


def test_a_prompt_is_compared_with_its_completion() -> None:
    question = as_question(PromptExample("To be", " or not"))

    assert question is not None
    assert (question.prompt, question.reference) == (TextPrompt(text="To be"), " or not")


def test_a_text_and_a_tool_call_have_no_answer_to_compare_with() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]

    assert as_question(TextExample("To be")) is None
    assert as_question(ChatExample(messages, [False, True])) is None
    assert as_question(ChatExample(messages, [False, False])) is None
