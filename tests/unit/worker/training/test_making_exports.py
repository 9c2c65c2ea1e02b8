"""What a child makes of an adapter: it computes the same, in the formats of other programs."""

import itertools
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from app.core import manifest
from app.core.hand_off.formats import ADAPTER_DIRECTORY_NAME
from app.core.job.artifacts import ADAPTER_WEIGHTS_NAME, EXPORT_NAMES
from app.core.job.child.job_spec import TaskName
from app.core.job.child.training_events import (
    Exported,
    Failed,
    MemoryShort,
    Progressed,
    TrainingEvent,
)
from app.core.machine.memory import measure_memory
from tests.export_jobs import STEP, write_export_job
from tests.tiny import (
    ALL_LINEAR,
    build_model,
    build_peft_model,
    build_tokenizer,
    change_job,
    chat_row,
    write_job,
)
from worker.training.artifacts.checkpoint import load_adapter
from worker.training.compute.memory import require_free_memory
from worker.training.export import export_adapter
from worker.training.failures import MemoryShortError, TrainingFailedError
from worker.training.hand_off.logits import Probe

IDS = torch.arange(40, 60)[None]


def write_base(directory: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A base model with the weights of `build_peft_model`."""
    model: Any = build_model(**changes)
    model.to(dtype).save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    return directory


def export(
    tmp_path: Path,
    task: TaskName,
    *,
    dtype: torch.dtype = torch.float32,
    model_type: str = "llama",
    strength: float = 1.0,
    **adapter: Any,
) -> list[TrainingEvent]:
    """Export an adapter of a tiny model in `tmp_path / job`, with its changes times `strength`."""
    base_model = write_base(tmp_path / "base", dtype, model_type=model_type)
    model = build_peft_model(model_type, target_modules=tuple(ALL_LINEAR), **adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.mul_(strength)
    write_export_job(tmp_path / "job", task, model, base_model=base_model)
    events: list[TrainingEvent] = []
    export_adapter(tmp_path / "job", events.append)
    return events


def tuned_logits(tmp_path: Path) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    tuned = load_adapter(base, tmp_path / "job" / ADAPTER_DIRECTORY_NAME)
    with torch.no_grad():
        return tuned.eval()(IDS).logits


def merged_logits(tmp_path: Path) -> torch.Tensor:
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "job/out/export", dtype=torch.float32)
    with torch.no_grad():
        return merged.eval()(IDS).logits


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ("embed_tokens",)},
        {"init_lora_weights": "olora"},
        {"layers": 1},
        {"layers": (0,)},
    ],
    ids=lambda variant: next(iter(variant), "lora"),
)
def test_a_merged_model_computes_what_the_adapter_does(
    tmp_path: Path, variant: dict[str, Any]
) -> None:
    *progress, last = export(tmp_path, "export_merged", variant=variant)

    assert all(isinstance(event, Progressed) for event in progress)
    assert isinstance(last, Exported)
    assert last.verification.max_difference < last.verification.tolerance
    assert last.verification.adapter_effect > 10 * last.verification.tolerance
    torch.testing.assert_close(
        merged_logits(tmp_path), tuned_logits(tmp_path), rtol=1e-3, atol=1e-3
    )


def test_a_merged_model_keeps_the_dtype_of_its_base_model(tmp_path: Path) -> None:
    *_, last = export(tmp_path, "export_merged", dtype=torch.bfloat16)

    assert isinstance(last, Exported)
    assert (last.verification.dtype, last.verification.computed_in) == ("bfloat16", "float32")
    weights = load_file(tmp_path / "job/out/export/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "job/out/export/config.json").read_text())
    assert config["dtype"] == "bfloat16"


def export_again(job: Path, **changes: Any) -> TrainingEvent:
    """Make an export whose child is told something else. Returns its last event."""
    change_job(job, **changes)
    events: list[TrainingEvent] = []
    export_adapter(job, events.append)
    return events[-1]


def test_an_export_that_does_not_fit_into_the_memory_for_jobs_fails(tmp_path: Path) -> None:
    export(tmp_path, "export_gguf")

    failed = export_again(tmp_path / "job", memory_bytes=1)

    assert isinstance(failed, Failed)
    assert failed.code == "not_enough_memory"
    assert failed.message.endswith(" of memory, and the machine has 0.0 GB for jobs.")


def test_a_model_that_fits_once_memory_is_free_is_only_short_of_it() -> None:
    total_bytes = measure_memory().total

    with pytest.raises(MemoryShortError) as short:
        require_free_memory(int(total_bytes / 1.2) - 1, what="The export", total_bytes=None)

    assert isinstance(short.value.event, MemoryShort)
    assert short.value.event.total_bytes == total_bytes
    assert require_free_memory(1, what="The export", total_bytes=1200) == 1000


def left_out(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `peft` merge nothing in the last layers, of which there are fourteen, and say nothing."""
    merge, calls = Linear.merge, itertools.count()

    def merge_some(layer: Any) -> None:
        if next(calls) < 14 - layers:
            merge(layer)
        else:
            layer.merged_adapters.append("default")

    monkeypatch.setattr(Linear, "merge", merge_some)


@pytest.mark.parametrize("layers", [14, 7, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_a_model_with_layers_that_were_not_merged_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layers: int,
    dtype: torch.dtype,
    variant: dict[str, Any],
) -> None:
    left_out(layers, monkeypatch)

    *_, failed = export(tmp_path, "export_merged", dtype=dtype, strength=0.02, variant=variant)

    assert isinstance(failed, Failed)
    assert failed.code == "export_not_equal"
    assert "does not compute what it does with the adapter" in failed.message
    assert not (tmp_path / "job/out/export").exists()


def test_a_merged_model_that_was_written_with_another_weight_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model = write_base(tmp_path / "base")
    write_export_job(tmp_path / "job", "export_merged", build_peft_model(), base_model=base_model)
    save = LlamaForCausalLM.save_pretrained

    def save_changed(model: Any, *args: Any, **options: Any) -> None:
        model.model.norm.weight.data[0] += 2**-12
        save(model, *args, **options)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_changed)
    events: list[TrainingEvent] = []
    export_adapter(tmp_path / "job", events.append)

    assert isinstance(events[-1], Failed)
    assert "do not have the weights that were merged" in events[-1].message


def test_an_adapter_that_the_dtype_of_its_base_model_rounds_away_is_refused(
    tmp_path: Path,
) -> None:
    *_, failed = export(tmp_path, "export_merged", dtype=torch.bfloat16, strength=1e-5)

    assert isinstance(failed, Failed)
    assert failed.code == "export_not_equal"
    assert "answers as the base model does: rounded to bfloat16" in failed.message


def test_an_export_has_all_that_a_program_needs_and_nothing_else(tmp_path: Path) -> None:
    export(tmp_path, "export_merged")

    directory = tmp_path / "job/out/export"
    promised = manifest.verify(directory)
    assert promised.step == STEP
    assert {path.name for path in directory.iterdir()} <= EXPORT_NAMES
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.chat_template
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == [258]
    card = (directory / "README.md").read_text()
    assert "vllm serve DIR" in card
    assert (directory / "adapter-card.md").read_text() == "# The adapter\n"


def test_an_adapter_that_has_only_weights_is_merged_with_the_tokenizer_of_its_base_model(
    tmp_path: Path,
) -> None:
    """So is one that was imported."""
    base_model, job = write_base(tmp_path / "base"), tmp_path / "job"
    write_export_job(job, "export_merged", build_peft_model(), base_model=base_model)
    adapter = job / ADAPTER_DIRECTORY_NAME
    for path in adapter.iterdir():
        if not path.name.startswith(("adapter_", "manifest")):
            path.unlink()
    events: list[TrainingEvent] = []

    export_adapter(job, events.append)

    assert isinstance(events[-1], Exported)
    assert AutoTokenizer.from_pretrained(job / "out/export").chat_template
    assert not (job / "out/export/adapter-card.md").exists()


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return metadata, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma"])
def test_a_gguf_adapter_has_the_names_of_llama_cpp(tmp_path: Path, model_type: str) -> None:
    *_, last = export(tmp_path, "export_gguf", model_type=model_type)

    assert isinstance(last, Exported)
    metadata, tensors = read_gguf(tmp_path / "job/out/export/adapter.gguf")
    assert metadata["general.type"] == "adapter"
    assert metadata["adapter.type"] == "lora"
    assert metadata["adapter.lora.alpha"] == 8
    architecture = "llama" if model_type == "mistral" else model_type
    assert metadata["general.architecture"] == architecture
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert tensors.keys() == {
        f"blk.{block}.{part}.weight.lora_{matrix}"
        for block in (0, 1)
        for part in parts
        for matrix in "ab"
    }


GGUF_LAYERS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Linear layer of a Qwen3 by its name in llama.cpp, which keeps the order of its rows."""


@pytest.mark.parametrize("layers", [1, (0,)], ids=str)
def test_a_gguf_adapter_in_some_layers_adds_what_the_adapter_does(
    tmp_path: Path, layers: object
) -> None:
    export(tmp_path, "export_gguf", model_type="qwen3", variant={"layers": layers})

    metadata, tensors = read_gguf(tmp_path / "job/out/export/adapter.gguf")
    assert {name.split(".")[1] for name in tensors} == {"1" if layers == 1 else "0"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        untuned = model.eval()(IDS).logits
        for name in {each.partition(".weight")[0] for each in tensors}:
            _, block, part = name.split(".")
            down, up = (torch.tensor(tensors[f"{name}.weight.lora_{each}"]) for each in "ab")
            linear = model.model.layers[int(block)].get_submodule(GGUF_LAYERS[part])
            linear.weight += metadata["adapter.lora.alpha"] / len(down) * up @ down
        logits = model(IDS).logits

    torch.testing.assert_close(logits, tuned_logits(tmp_path), rtol=1e-3, atol=1e-3)
    assert (logits - untuned).abs().max() > 0.1


def test_rows_of_queries_and_keys_are_in_the_order_of_llama_cpp(tmp_path: Path) -> None:
    export(tmp_path, "export_gguf")

    adapter = load_file(tmp_path / "job" / ADAPTER_DIRECTORY_NAME / ADAPTER_WEIGHTS_NAME)
    _, tensors = read_gguf(tmp_path / "job/out/export/adapter.gguf")
    layer = "base_model.model.model.layers.1.self_attn"
    in_a_head = [0, 4, 1, 5, 2, 6, 3, 7]
    order = [8 * head + row for head in range(4) for row in in_a_head]
    rows = adapter[f"{layer}.q_proj.lora_B.weight"].numpy()
    assert np.array_equal(tensors["blk.1.attn_q.weight.lora_b"], rows[order])
    rows = adapter[f"{layer}.k_proj.lora_B.weight"].numpy()
    assert np.array_equal(tensors["blk.1.attn_k.weight.lora_b"], rows[order[:16]])
    rows = adapter[f"{layer}.v_proj.lora_B.weight"].numpy()
    assert np.array_equal(tensors["blk.1.attn_v.weight.lora_b"], rows)


def test_alpha_has_the_scale_of_rslora(tmp_path: Path) -> None:
    *_, last = export(tmp_path, "export_gguf", variant={"use_rslora": True})

    assert isinstance(last, Exported)
    metadata, _ = read_gguf(tmp_path / "job/out/export/adapter.gguf")
    assert metadata["adapter.lora.alpha"] == 8 * 4**0.5


def test_a_weight_without_a_place_in_gguf_fails_the_export(tmp_path: Path) -> None:
    base_model = write_base(tmp_path / "base")
    job = tmp_path / "job"
    write_export_job(job, "export_gguf", build_peft_model(), base_model=base_model)
    weights = job / ADAPTER_DIRECTORY_NAME / ADAPTER_WEIGHTS_NAME
    save_file({"base_model.model.other.lora_A.weight": torch.zeros(4, 32)}, weights)
    events: list[TrainingEvent] = []

    export_adapter(job, events.append)

    (failed,) = events
    assert isinstance(failed, Failed)
    assert failed.code == "format_not_possible"
    assert "format=merged" in failed.message
    assert not (job / "out/export").exists()


def test_logits_that_differ_by_more_than_the_tolerance_are_refused(tmp_path: Path) -> None:
    base_model = write_base(tmp_path / "base")
    probe = Probe(
        base_model, write_job(tmp_path / "job", [chat_row("Hi", "Ho")], base_model=base_model)
    )
    logits = probe.read(build_model())
    changed = [each + 0.01 * each.abs().max() for each in logits]

    probe.compare(changed, tuned=logits, untuned=logits, dtype=torch.bfloat16)
    with pytest.raises(TrainingFailedError, match=r"logits differ by 0\.01"):
        probe.compare(changed, tuned=logits, untuned=logits, dtype=torch.float32)
