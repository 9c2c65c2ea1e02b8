"""Preferences become pairs of rows, and a pair is trained on whole or not at all."""

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from app.core.dataset.formats import ChatExample, PreferenceExample
from tests.chat_families import CONVERSATIONS, FAMILIES, build_encoder, build_tokenizer
from tests.tiny import build_tokenizer as build_tiny_tokenizer
from tests.unit.worker.training.test_dataset import failure_of, read, tokenize, warnings
from worker.training.data.chat_template import ChatTemplateError
from worker.training.data.dataset import IGNORE_INDEX
from worker.training.data.encoding import Encoded
from worker.training.data.split import split_rows
from worker.training.failures import TrainingFailedError

USER = {"role": "user", "content": "2 + 2?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def says(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def texts(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def chat(better: str, worse: str, spelling: str = "output") -> dict[str, Any]:
    return {
        "input": {"messages": [USER]},
        f"preferred_{spelling}": says(better),
        f"non_preferred_{spelling}": says(worse),
    }


def read_rows(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> list[tuple[str, str]]:
    """The prompt and the learned part of each row, as text."""
    data = read(tmp_path, list(rows), **settings)
    tokenizer = build_tiny_tokenizer()
    shown: list[tuple[str, str]] = []
    for row in map(data.read, range(len(data))):
        is_learned = row.labels != IGNORE_INDEX
        parts = (row.input_ids[~is_learned], row.input_ids[is_learned])
        shown.append((str(tokenizer.decode(parts[0])), str(tokenizer.decode(parts[1]))))
    return shown


def test_a_text_becomes_the_preferred_answer_and_the_other_one(tmp_path: Path) -> None:
    rows = read_rows(tmp_path, texts("2 + 2 =", " 4", " five"), texts("a", "b", "c"))

    assert rows == [
        ("2 + 2 =", " 4<|im_end|>"),
        ("2 + 2 =", " five<|im_end|>"),
        ("a", "b<|im_end|>"),
        ("a", "c<|im_end|>"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        chat("Four.", "No.", "output"),
        chat("Four.", "No.", "completion"),
        {"prompt": [USER], "chosen": says("Four."), "rejected": says("No.")},
    ],
    ids=["OpenAI's guide", "OpenAI's specification", "TRL"],
)
def test_a_chat_is_read_as_far_as_the_answer_in_every_spelling(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    before = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"

    assert read_rows(tmp_path, row) == [
        (f"{before}\n", "Four.<|im_end|>"),
        (f"{before}\n", "No.<|im_end|>"),
    ]


def test_earlier_answers_are_read_and_tools_reach_the_template(tmp_path: Path) -> None:
    row = chat("Four.", "No.") | {
        "input": {"messages": [USER, *says("Sum?"), USER], "tools": [TOOL]},
        "preferred_output": [{"role": "assistant", "tool_calls": [CALL]}],
    }

    preferred, other = read_rows(
        tmp_path, row, max_sequence_tokens=512, chat_template=TOOL_TEMPLATE
    )

    assert json.dumps(TOOL) in preferred[0]
    assert "Sum?" in preferred[0]
    assert preferred[1] == "<call>add</call><|im_end|>"
    assert other == (preferred[0], "No.<|im_end|>")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("conversation", ["single_turn", "multi_turn", "system", "tools"])
def test_both_answers_have_the_prompt_of_every_family(family: str, conversation: str) -> None:
    whole = CONVERSATIONS[conversation]
    prompt = whole.messages[:-1]
    is_learned = [False] * len(prompt) + [True]
    better, worse = (
        ChatExample([*prompt, *says(answer)], is_learned, whole.tools) for answer in ("R2", "Zz")
    )
    encoder = build_encoder(family, build_tokenizer(family))
    try:
        expected = [row for example in (better, worse) for row in encoder.encode(example)]
    except ChatTemplateError:
        with pytest.raises(ChatTemplateError):
            encoder.encode(PreferenceExample(better, worse))
        return

    rows = encoder.encode(PreferenceExample(better, worse))

    assert rows == expected
    first, second = map(prompt_of, rows)
    assert first == second
    assert first


def prompt_of(row: Encoded) -> list[int]:
    tokens = zip(row.input_ids, row.is_learned, strict=True)
    return [token for token, _ in takewhile(lambda pair: not pair[1], tokens)]


@pytest.mark.parametrize("long_answer", [1, 2])
def test_a_pair_with_one_long_answer_is_left_out_whole(tmp_path: Path, long_answer: int) -> None:
    answers = ["short", "short", "short"]
    answers[long_answer] = "x" * 64
    rows = [texts(*answers), texts("a", "b", "c")]

    findings, _ = tokenize(tmp_path, rows, overlong="drop")

    assert read(tmp_path, rows, overlong="drop").lines.tolist() == [2, 2]
    assert findings.examples == 1
    assert findings.lost_learned_tokens == 65 + 6
    assert warnings(findings) == {"dropped": (1, (1,))}


def test_a_pair_with_a_long_answer_fails_the_job_where_asked(tmp_path: Path) -> None:
    failed = failure_of(tmp_path, [texts("a", "b", "x" * 64)], overlong="error")

    assert failed.code == "row_too_long"
    assert [problem.message for problem in failed.errors] == [
        "The example has 66 tokens; the limit is 64."
    ]


def test_each_answer_of_a_pair_is_cut_off_at_the_limit(tmp_path: Path) -> None:
    rows = [texts("a", "b" * 70, "c")]

    findings, _ = tokenize(tmp_path, rows)

    assert read(tmp_path, rows).lengths.tolist() == [64, 3]
    assert findings.lost_learned_tokens == 8
    assert warnings(findings) == {"truncated": (1, (1,)), "stop_token_cut_off": (1, (1,))}


def test_a_pair_that_differs_after_the_limit_is_left_out_and_named(tmp_path: Path) -> None:
    rows = [texts("a", "b" * 70 + "c", "b" * 70 + "d"), texts("a", "b", "c")]

    findings, _ = tokenize(tmp_path, rows)

    assert read(tmp_path, rows).lines.tolist() == [2, 2]
    assert findings.examples == 1
    assert warnings(findings)["equal_answers"] == (1, (1,))


def test_a_pair_whose_prompt_fills_the_limit_has_nothing_to_learn(tmp_path: Path) -> None:
    rows = [texts("a" * 64, "b", "c"), texts("a", "b", "c")]

    findings, _ = tokenize(tmp_path, rows)

    assert findings.examples == 1
    assert warnings(findings)["nothing_to_learn"] == (1, (1,))


def test_a_file_without_a_pair_that_is_left_fails_the_job(tmp_path: Path) -> None:
    rows = [texts("a" * 64, "b", "c"), texts("a", "b" * 70 + "c", "b" * 70 + "d")]

    failed = failure_of(tmp_path, rows)

    assert failed.code == "no_trainable_tokens"
    assert "2 have nothing to learn within 64 tokens" in failed.message


def test_pairs_are_counted_as_examples_with_the_tokens_of_both_answers(tmp_path: Path) -> None:
    findings, _ = tokenize(tmp_path, [texts("abc", "d", "efg")] * 2 + [texts("a", "b", "c")])

    assert (findings.lines, findings.examples, findings.split_chats) == (3, 3, 0)
    assert (findings.tokens, findings.learned_tokens) == (2 * 12 + 6, 2 * 6 + 4)
    assert list(findings.lengths) == [7, 7, 3]
    assert list(findings.learned_lengths) == [6, 6, 4]
    assert warnings(findings)["duplicate"] == (1, (2,))


def test_the_worse_answer_may_look_like_a_mistake(tmp_path: Path) -> None:
    rows = [texts("a", f"good {number}", "n/a") for number in range(12)]

    assert warnings(tokenize(tmp_path, rows)[0]) == {}
    swapped = [texts("a", "n/a", f"bad {number}") for number in range(12)]
    assert warnings(tokenize(tmp_path, swapped)[0]).keys() == {"empty_answer", "same_answer"}


def test_a_split_holds_out_whole_pairs(tmp_path: Path) -> None:
    data = read(tmp_path, [texts("a", f"b{number}", "c") for number in range(10)])

    training, held_out = split_rows(data, fraction=0.2, seed=1)

    assert (len(training), len(held_out)) == (16, 4)
    for part in (training, held_out):
        lines = part.lines.tolist()
        assert lines[::2] == lines[1::2]


def test_a_file_of_an_earlier_release_with_equal_answers_fails_the_job(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailedError, match=r"mine\.jsonl: Both answers") as caught:
        tokenize(tmp_path, [texts("a", "b", "b")])

    assert (caught.value.code, caught.value.param) == ("invalid_file", "training_file")
