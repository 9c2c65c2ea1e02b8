"""The embedded base model, as plain transformers loads what was installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from app.core.base_models import DEFAULT_MODEL_ID, InstalledModel, digest_of_files, load_catalogue
from app.core.manifest import sha256_of


@pytest.fixture(scope="module")
def tokenizer(embedded_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(embedded_model_dir)


@pytest.fixture(scope="module")
def model(embedded_model_dir: Path) -> Any:
    # Not in its own bfloat16, in which a processor without it takes many times as long.
    return AutoModelForCausalLM.from_pretrained(embedded_model_dir, dtype=torch.float32)


def answer(model: Any, tokenizer: Any, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    generated = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(generated[0, prompt["input_ids"].shape[1] :])


def test_it_knows_the_capital_of_france_and_when_to_stop(model: Any, tokenizer: Any) -> None:
    text = answer(model, tokenizer, "What is the capital of France?")

    assert "Paris" in text
    assert text.endswith("<|im_end|>")


def test_it_predicts_plain_english_well(model: Any, tokenizer: Any) -> None:
    """2.35 as it should be; 3.33 with the query and key rows left in the order of llama.cpp."""
    text = "The sun rises in the east and sets in the west. Water freezes at zero degrees Celsius."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]

    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()

    assert loss < 2.7


def test_its_shape_is_that_of_smollm2_135m(model: Any, embedded_model_dir: Path) -> None:
    config = model.config

    assert AutoConfig.from_pretrained(embedded_model_dir).dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (
        576,
        1536,
        30,
    )
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert (config.vocab_size, config.max_position_embeddings) == (49_152, 8192)
    assert config.rms_norm_eps == 1e-5
    assert config.rope_parameters["rope_theta"] == 100_000.0


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "  spaces\tand\n\nlines ",
        "digits 0123456789, 3.14 and 1,000,000",
        "Zürich, Đà Nẵng, 日本語, עברית",
        "emoji 🎉 👩‍👩‍👧 🇫🇷",
        "x² + y³ = ½",
        "<|im_start|>user\nhello<|im_end|>\n",
    ],
)
def test_text_survives_the_tokenizer(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    assert tokenizer.tokenize("12 345") == ["1", "2", "Ġ", "3", "4", "5"]


def test_no_token_is_added_to_a_text(tokenizer: Any) -> None:
    assert tokenizer.tokenize("Hello") == ["Hello"]


@pytest.mark.parametrize(
    ("token", "number"),
    [("<|endoftext|>", 0), ("<|im_start|>", 1), ("<|im_end|>", 2), ("<empty_output>", 16)],
)
def test_a_special_token_is_one_number(token: str, number: int, tokenizer: Any) -> None:
    assert tokenizer(f"a{token}b")["input_ids"][1:-1] == [number]
    assert tokenizer.decode([number], skip_special_tokens=True) == ""


def test_the_special_tokens_have_their_parts(tokenizer: Any) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == 8192


def test_the_chat_template_is_the_models_own(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_its_record_names_the_repository_and_every_file(embedded_model_dir: Path) -> None:
    record = InstalledModel.model_validate_json((embedded_model_dir / "tunery.json").read_bytes())

    assert record.id == DEFAULT_MODEL_ID
    assert record.repo == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert record.sha256 == digest_of_files(record.files)
    assert record.files == {name: sha256_of(embedded_model_dir / name) for name in record.files}


def test_the_catalogue_promises_what_the_model_holds(model: Any, tmp_path: Path) -> None:
    entry = load_catalogue(tmp_path).find(DEFAULT_MODEL_ID)

    assert entry is not None
    assert entry.context_length == model.config.max_position_embeddings
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert set(entry.target_modules) <= names
