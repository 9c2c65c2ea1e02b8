"""An exported adapter in a real llama.cpp: it answers as the adapter does in peft.

The package `node-llama-cpp` has a build of llama.cpp. It comes with `make clients`.
"""

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME, GGUF_ARCHITECTURES
from app.core.job.child.training_events import Exported, TrainingEvent
from benchmarks.support.gguf_models import write_base_gguf
from benchmarks.support.llama_cpp import INSTALLED, NODE, is_installed
from tests.export_jobs import write_export_job
from tests.programs import skip_unless_ci
from tests.tiny import ALL_LINEAR, build_model, build_peft_model, build_tokenizer
from worker.training.artifacts.checkpoint import load_adapter
from worker.training.export import export_adapter

SCRIPT = Path(__file__).parents[1] / "clients" / "llama_cpp.mjs"
LIMIT_S = 120
PROMPT = list(b"Once upon a time")
COUNT = 10
"""Tokens of an answer. llama.cpp caches in half precision, so sooner or later it takes the other
of two tokens that are nearly equal."""


def greedy(model: Any) -> list[int]:
    ids = torch.tensor([PROMPT])
    for _ in range(COUNT):
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(PROMPT) :].tolist()


FUSED_LINEAR = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""Every linear layer of a Phi 3."""

CHANGES: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8, "num_hidden_layers": 8, "seed": 3},
    "gemma3_text": {"query_pre_attn_scalar": 8, "num_hidden_layers": 8},
    "phi3": {"tie_word_embeddings": False},
}
"""What llama.cpp takes for granted of an architecture, and what keeps a Gemma from repeating one
token."""


@pytest.mark.parametrize(
    ("model_type", "variant"),
    [
        ("llama", {"use_rslora": True}),
        ("llama", {"layers": (0,)}),
        *((each, {}) for each in sorted(GGUF_ARCHITECTURES)),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value), "lora"),
)
def test_llama_cpp_answers_as_the_adapter_does(
    tmp_path: Path, model_type: str, variant: dict[str, Any]
) -> None:
    if not is_installed():
        skip_unless_ci("node-llama-cpp is not installed: make clients")
    base_model, job = tmp_path / "base", tmp_path / "job"
    build = partial(build_model, model_type, **CHANGES.get(model_type, {}))
    build().save_pretrained(base_model)
    build_tokenizer().save_pretrained(base_model)
    targets = FUSED_LINEAR if model_type == "phi3" else tuple(ALL_LINEAR)
    changes = CHANGES.get(model_type, {})
    model = build_peft_model(model_type, target_modules=targets, variant=variant, **changes)
    write_export_job(job, "export_gguf", model, base_model=base_model)
    events: list[TrainingEvent] = []
    export_adapter(job, events.append)
    assert isinstance(events[-1], Exported)
    (job / "out/export/adapter.gguf").rename(tmp_path / "adapter.gguf")
    write_base_gguf(tmp_path / "base.gguf", build())
    (tmp_path / "asked.json").write_text(json.dumps({"prompt": PROMPT, "count": COUNT}))

    done = subprocess.run(
        [str(NODE), str(SCRIPT), str(tmp_path)],
        env=os.environ | {"NODE_PATH": str(INSTALLED)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    base, tuned = build(), load_adapter(build(), job / ADAPTER_DIRECTORY_NAME)
    assert answers["base"] == greedy(base.eval())
    assert answers["tuned"] == greedy(tuned.eval())
    assert answers["tuned"] != answers["base"]
