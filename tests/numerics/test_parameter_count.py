"""The well-known line `trainable params: ... || all params: ... || trainable%: ...`."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config


def test_the_reference_settings_train_8_716_288_parameters_of_qwen2_1_5b() -> None:
    """Counted without memory for the weights, so on any machine."""
    config = Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        lora = LoraConfig(
            r=64, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"]
        )
        tuned = get_peft_model(model, lora)

    trainable, everything = tuned.get_nb_trainable_parameters()

    assert (trainable, everything) == (8_716_288, 1_552_430_592)
    assert 100 * trainable / everything == pytest.approx(0.56, abs=0.005)
