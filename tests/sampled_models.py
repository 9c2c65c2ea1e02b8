"""Tiny base models and adapters on the disk, and what `transformers` and `peft` make of them."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.warning import PeftWarning
from torch import Tensor
from transformers import AutoModelForCausalLM

from app.core.job.artifacts import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from tests.tiny import ALL_LINEAR, build_model
from worker.sampling.model.adapter_files import AdapterFiles
from worker.sampling.model.loading import load_runner
from worker.sampling.model.runner import Adapter, Row, Runner
from worker.training.artifacts.checkpoint import write_adapter
from worker.training.compute.plan import Placement

PROMPTS = ([65, 66, 67, 68, 69], [70], [71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81], [90, 91])
TOKENS = 12


def write_base(directory: Path, model_type: str = "llama", **changes: Any) -> Path:
    """A base model whose biases and norms are random as well."""
    model = build_model(model_type, **changes)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(directory)
    return directory


def write_random_adapter(
    directory: Path, base: Path, *, seed: int = 0, modules: Sequence[str] = ALL_LINEAR, **lora: Any
) -> Path:
    """An adapter of the base model in `base` whose every weight is random."""
    directory.mkdir()
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": list(modules)}
    config = LoraConfig(task_type="CAUSAL_LM", **(settings | lora))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PeftWarning)  # of biases of adapters
        torch.manual_seed(seed)
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                torch.nn.init.normal_(parameter, std=0.2)
            elif "magnitude" in name:
                parameter.data *= 1 + torch.rand_like(parameter)
        write_adapter(directory, model)
    return directory


@contextmanager
def open_adapter(directory: Path) -> Iterator[AdapterFiles]:
    weights, config = directory / ADAPTER_WEIGHTS_NAME, directory / ADAPTER_CONFIG_NAME
    with weights.open("rb") as weights_file, config.open("rb") as config_file:
        yield AdapterFiles(
            weights=weights_file,
            config=config_file,
            weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
            config_sha256=hashlib.sha256(config.read_bytes()).hexdigest(),
            max_bytes=2**20,
        )


def load_tiny_runner(directory: Path) -> Runner:
    return load_runner(directory, Placement("cpu", "float32"))


def load_into(runner: Runner, adapter: Path | None) -> Adapter | None:
    if adapter is None:
        return None
    with open_adapter(adapter) as files:
        return runner.load_adapter(files)


def answer_greedily(
    runner: Runner, prompts: Sequence[Sequence[int]], adapters: Sequence[Adapter | None]
) -> Tensor:
    """The log-probabilities by which the most likely tokens after each prompt are chosen.

    All rows are read in one batch.

    Returns:
        `log_probs_BTV`, for each prompt, token of its answer and token of the vocabulary.
    """
    caches = [runner.new_cache() for _ in prompts]
    tokens = [list(prompt) for prompt in prompts]
    log_probs: list[Tensor] = []
    for _ in range(TOKENS):
        rows = [Row(*each) for each in zip(caches, tokens, adapters, strict=True)]
        log_probs.append(runner.read(rows).log_softmax(-1))
        tokens = log_probs[-1].argmax(-1, keepdim=True).tolist()
    return torch.stack(log_probs, dim=1)


def load_reference(base: Path, adapter: Path | None) -> Any:
    """The model as users load it elsewhere."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is None:
        return model.eval()
    with warnings.catch_warnings():
        # Embeddings that were one matrix are saved twice, and equal.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", category=PeftWarning)
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def generate_greedily(base: Path, adapter: Path | None, prompt: Sequence[int]) -> Tensor:
    """What `transformers` has for one row of `answer_greedily`."""
    model = load_reference(base, adapter)
    model.generation_config.eos_token_id = None
    generated = model.generate(
        input_ids=torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=TOKENS,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(generated.logits).float().log_softmax(-1)


def log_probs_after(base: Path, adapter: Path | None, prompt: Sequence[int]) -> Tensor:
    """Log-probabilities of the next token, by `transformers` and `peft`."""
    with torch.no_grad():
        logits = load_reference(base, adapter)(input_ids=torch.tensor([list(prompt)])).logits
    return logits[0, -1].float().log_softmax(-1)
