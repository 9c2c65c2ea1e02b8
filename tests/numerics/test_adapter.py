import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import PeftModel

from app.core.job.lora_shape import LoraShape
from tests.tiny import BASE_MODEL, build_model, build_peft_model
from worker.training.artifacts.checkpoint import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    check_adapter,
    write_adapter,
)
from worker.training.failures import TrainingFailedError
from worker.training.model.base_model import (
    attach_adapter,
    describe_parameters,
    trainable_parameters,
)
from worker.training.step.step import BestAdapter

INPUT_IDS = torch.arange(40, 60)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=INPUT_IDS[None], use_cache=False).logits


def test_an_untrained_adapter_changes_nothing() -> None:
    model = build_peft_model(is_trained=False)

    torch.testing.assert_close(logits(model), logits(build_model()), rtol=0, atol=0)


def test_the_adapter_that_peft_loads_is_the_one_that_was_saved(tmp_path: Path) -> None:
    model = build_peft_model()

    write_adapter(tmp_path, model)
    loaded = PeftModel.from_pretrained(build_model(), str(tmp_path))

    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert {path.name for path in tmp_path.iterdir()} == {
        ADAPTER_CONFIG_NAME,
        ADAPTER_WEIGHTS_NAME,
    }


@pytest.mark.parametrize(
    ("variant", "more"),
    [
        ({}, {}),
        ({"init_lora_weights": "gaussian"}, {}),
        ({"use_rslora": True}, {"use_rslora": True}),
        ({"use_dora": True}, {"use_dora": True}),
    ],
    ids=["usual", "gaussian", "rslora", "dora"],
)
def test_the_configuration_of_an_adapter_has_no_setting_that_an_older_peft_refuses(
    tmp_path: Path, variant: dict[str, Any], more: dict[str, Any]
) -> None:
    """peft 0.13 knows all of these names, and refuses an adapter with any that came later."""
    write_adapter(tmp_path, build_peft_model(variant=variant))

    assert json.loads((tmp_path / ADAPTER_CONFIG_NAME).read_text()) == more | {
        "base_model_name_or_path": BASE_MODEL.repo,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 4,
        "revision": BASE_MODEL.revision,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }


def test_a_base_model_from_a_directory_has_an_address_that_is_no_repository(
    tmp_path: Path,
) -> None:
    own = BASE_MODEL.model_copy(update={"id": "ours", "repo": "q3b", "revision": None})

    write_adapter(tmp_path, attach_adapter(build_model(), LoraShape(), own))

    named = json.loads((tmp_path / ADAPTER_CONFIG_NAME).read_text())["base_model_name_or_path"]
    assert named == "./models/ours"
    with pytest.raises(HFValidationError):
        validate_repo_id(named)


def test_the_trainable_parameters_are_described_as_peft_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = build_peft_model()

    model.print_trainable_parameters()

    assert describe_parameters(model) == capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", ["qkv_proj", "lm_head", "embed_tokens", "0"])
def test_a_layer_that_cannot_be_targeted_is_refused_and_the_others_are_named(name: str) -> None:
    shape = LoraShape(target_modules=("q_proj", name))

    with pytest.raises(TrainingFailedError, match=rf"named {name}\. It has down_proj, ") as caught:
        attach_adapter(build_model(), shape, BASE_MODEL)

    assert caught.value.code == "unknown_target_module"


def test_a_good_adapter_passes_the_check(tmp_path: Path) -> None:
    model = build_peft_model()
    write_adapter(tmp_path, model)

    check_adapter(model, tmp_path, INPUT_IDS, step=1, learning_rate=1e-4)


def test_an_adapter_that_changes_nothing_fails_the_check(tmp_path: Path) -> None:
    model = build_peft_model(is_trained=False)
    write_adapter(tmp_path, model)

    with pytest.raises(TrainingFailedError, match=r"learning_rate=0\.0001 is too low") as caught:
        check_adapter(model, tmp_path, INPUT_IDS, step=1, learning_rate=1e-4)

    assert caught.value.code == "adapter_has_no_effect"


def test_an_adapter_that_is_not_the_trained_one_fails_the_check(tmp_path: Path) -> None:
    model = build_peft_model()
    write_adapter(tmp_path, model)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(0.1)

    with pytest.raises(RuntimeError, match="is not the one that was trained"):
        check_adapter(model, tmp_path, INPUT_IDS, step=1, learning_rate=1e-4)


def test_an_adapter_that_diverged_in_the_last_step_fails_the_check(tmp_path: Path) -> None:
    model = build_peft_model()
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.mul_(1e30)
    write_adapter(tmp_path, model)

    with pytest.raises(TrainingFailedError, match="diverged at step 5") as caught:
        check_adapter(model, tmp_path, INPUT_IDS, step=5, learning_rate=1)

    assert caught.value.code == "loss_not_finite"


def test_the_best_adapter_is_remembered_until_patience_ends() -> None:
    model = build_peft_model()
    best = BestAdapter(patience=2)
    seen: list[bool] = []
    for step, loss in enumerate([3.0, 2.0, 2.5, 1.0, 1.0, 1.5], start=1):
        with torch.no_grad():
            next(trainable_parameters(model)).fill_(step)
        best.observe(step, loss, model)
        seen.append(best.is_final)

    best.restore(model)

    assert seen == [False, False, False, False, False, True]
    assert best.step == 4
    assert torch.all(next(trainable_parameters(model)) == 4)
