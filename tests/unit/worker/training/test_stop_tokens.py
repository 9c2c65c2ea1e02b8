import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import build_tokenizer
from worker.training.data.stop_tokens import StopTokens


def read(
    directory: Path, ends: set[str], generation_config: dict[str, Any] | None = None
) -> StopTokens:
    if generation_config is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation_config))
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"  # noqa: S105 - as base models have it
    return StopTokens.read(directory, tokenizer).teaching(ends, tokenizer)


@pytest.mark.parametrize("eos_token_id", [258, [256, 258], None])
def test_every_token_that_stops_the_model_is_in_its_generation_config(
    tmp_path: Path, eos_token_id: Any
) -> None:
    config = {"eos_token_id": eos_token_id, "temperature": 0.5}

    written = json.loads(read(tmp_path, {"<|im_end|>"}, config).as_generation_config())

    assert set(written["eos_token_id"]) == {256, 258}
    assert written["temperature"] == 0.5


def test_a_base_model_that_stops_elsewhere_is_warned_of(tmp_path: Path) -> None:
    (warning,) = read(tmp_path, {"<|im_end|>", "<|endoftext|>"}).warnings()

    assert (warning.code, warning.param) == ("stop_token_unknown", None)
    assert warning.message.startswith(
        "The answers end with <|im_end|>, and the base model stops at <|endoftext|>. "
    )


def test_an_end_that_is_no_token_is_warned_of_and_left_out(tmp_path: Path) -> None:
    stop_tokens = read(tmp_path, {"### End"})

    assert "names only the tokens of the base model" in stop_tokens.warnings()[0].message
    assert json.loads(stop_tokens.as_generation_config())["eos_token_id"] == [256]


def test_a_base_model_that_stops_where_the_answers_end_is_not_warned_of(tmp_path: Path) -> None:
    assert read(tmp_path, {"<|im_end|>"}, {"eos_token_id": [258]}).warnings() == []
