from datetime import date

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.core.dataset.formats import ChatExample, Example, PromptExample, TextExample
from app.core.job.training_config import TrainOn
from tests.tiny import build_tokenizer
from worker.training.data.encoding import Encoded, Encoder

CHAT = ChatExample(
    [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "Four, très sûr."}],
    [False, True],
)


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    train_on: TrainOn = "all_assistant",
) -> Encoded:
    encoder = Encoder(tokenizer or build_tokenizer(), train_on=train_on, today=date(2026, 1, 31))
    (row,) = encoder.encode(example)
    return row


def learned_text(encoded: Encoded, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    tokens = zip(encoded.input_ids, encoded.is_learned, strict=True)
    learned = [token for token, is_learned in tokens if is_learned]
    return str((tokenizer or build_tokenizer()).decode(learned))


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        pytest.param(TextExample("User: hé"), "User: hé<|im_end|>", id="text"),
        pytest.param(PromptExample("2 + 2 =", " 4"), " 4<|im_end|>", id="prompt"),
        pytest.param(PromptExample("", "4"), "4<|im_end|>", id="no-prompt"),
        pytest.param(CHAT, "Four, très sûr.<|im_end|>", id="chat"),
    ],
)
def test_what_is_learned_is_what_the_model_has_to_write(example: Example, expected: str) -> None:
    assert learned_text(encode(example)) == expected


@pytest.mark.parametrize("example", [PromptExample("2 + 2 =", " 4"), CHAT])
def test_all_of_it_is_learned_when_everything_is_trained_on(example: Example) -> None:
    assert all(encode(example, train_on="everything").is_learned)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((True, True), "Two.<|im_end|>"), ((True, False), "")],
    ids=["learned", "weight-0"],
)
def test_only_the_last_answer_of_a_chat_is_learned_where_asked(
    weights: tuple[bool, bool], expected: str
) -> None:
    messages = [*CHAT.messages, *CHAT.messages, {"role": "user", "content": "Thanks."}]
    messages[3] = {"role": "assistant", "content": "Two."}
    example = ChatExample(messages, [False, weights[0], False, weights[1], False])

    assert learned_text(encode(example, train_on="last_assistant")) == expected


def test_a_chat_is_read_as_the_chat_template_writes_it() -> None:
    text = build_tokenizer().decode(encode(CHAT).input_ids)

    assert text == (
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\nFour, très sûr.<|im_end|>\n"
    )


def test_a_text_that_ends_with_the_end_token_gets_no_second_one() -> None:
    encoded = encode(PromptExample("2 + 2 =", " 4<|im_end|>"))

    assert learned_text(encoded) == " 4<|im_end|>"


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Has tokens of several spaces, trims spaces off offsets, and begins every text itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "ĠĠ", "<s>", "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
            ),
        ]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_spaces_that_a_tokenizer_trims_off_its_offsets_are_learned() -> None:
    tokenizer = words_tokenizer()

    encoded = encode(PromptExample("a:", "  b   c"), tokenizer)

    assert learned_text(encoded, tokenizer) == "  b   c</s>"
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert not encoded.is_learned[0]
