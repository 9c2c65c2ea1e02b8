"""Requests that are refused, each with its whole answer; and those that only look bad."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.acceptance.lab import Answer, Lab, Send, bad_value, envelope, open_lab, problems

Body = dict[str, dict[str, Any]]

BAD_JSON = "The body is not valid JSON: "
NO_OBJECT = "The body must be a JSON object."
NO_JSON = "Send the body as JSON, with the header 'Content-Type: application/json'."
TARGETS = "q_proj, k_proj, v_proj, o_proj"
NO_LAYERS = (
    "Input should be the number of the last layers that get an adapter, at least 1, or a list of "
    "the indices of layers, from 0"
)


def supervised(**knobs: Any) -> dict[str, Any]:
    """The field `method` of a job with these hyperparameters."""
    return {"type": "supervised", "supervised": {"hyperparameters": knobs}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def check(lab: Lab, send: Send, status: int, error: Body) -> None:
    answer = send(lab)

    assert answer.json() == error
    assert answer.status_code == status
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        pytest.param(b"", 400, problems(("", "missing_required_parameter", NO_OBJECT)), id="none"),
        pytest.param(b"[]", 400, problems(("", "invalid_value", NO_OBJECT)), id="array"),
        pytest.param(b"null", 400, problems(("", "invalid_value", NO_OBJECT)), id="null"),
        pytest.param(
            b"{'model': 'tiny'}",
            400,
            envelope(
                "invalid_json",
                f"{BAD_JSON}Expecting property name enclosed in double quotes at column 2.",
            ),
            id="Python",
        ),
        pytest.param(
            b'{"seed": NaN}', 400, envelope("invalid_json", f"{BAD_JSON}NaN is not JSON."), id="NaN"
        ),
        pytest.param(
            b'{"model": "\xff"}',
            400,
            envelope("invalid_json", f"{BAD_JSON}not UTF-8: invalid start byte at byte 11."),
            id="not UTF-8",
        ),
        pytest.param(
            b"[" * 100_000,
            400,
            envelope("json_too_complex", "The body has more than 30,000 values. See docs/api.md."),
            id="deep",
        ),
        pytest.param(
            b'{"model": "' + b"x" * 2**21 + b'"}',
            413,
            envelope("payload_too_large", "The body is larger than 1 MiB."),
            id="2 MiB",
        ),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(
    lab: Lab, body: bytes, status: int, error: Body
) -> None:
    check(lab, lambda lab: lab.send_json(body), status, error)


@pytest.mark.parametrize("content_type", ["", "text/plain", "multipart/form-data; boundary=X"])
def test_a_body_must_be_declared_as_json(lab: Lab, content_type: str) -> None:
    error = envelope("unsupported_media_type", NO_JSON)

    check(lab, lambda lab: lab.send_json(b"{}", content_type), 415, error)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        pytest.param(
            {"model": "gpt-4o-mini"},
            envelope(
                "model_not_available",
                "There is no base model 'gpt-4o-mini'. Installed: tiny, hub-tiny.",
                "model",
            ),
            id="unknown model",
        ),
        pytest.param(
            {"model": "us/absent"},
            envelope(
                "model_not_available",
                "The base model absent is not installed. Run: tunery models install absent",
                "model",
            ),
            id="model that is not installed",
        ),
        pytest.param(
            {"model": 5}, bad_value("model", "Input should be a valid string"), id="model of 5"
        ),
        pytest.param(
            {"training_file": None},
            bad_value("training_file", "Input should be a valid string"),
            id="no training file",
        ),
        pytest.param(
            {"trainin_file": "x"},
            problems(
                (
                    "trainin_file",
                    "unknown_parameter",
                    "Unknown parameter: 'trainin_file'. Did you mean 'training_file'?",
                )
            ),
            id="misspelt parameter",
        ),
        pytest.param(
            {"zzz": 1},
            problems(("zzz", "unknown_parameter", "Unknown parameter: 'zzz'.")),
            id="unknown parameter",
        ),
        pytest.param(
            {"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}},
            bad_value(
                "method.type",
                "The method 'reinforcement' is not offered here; use 'supervised' or 'dpo'",
                "unsupported_method",
            ),
            id="reinforcement",
        ),
        pytest.param(
            {"method": {"supervised": {}}},
            problems(
                (
                    "method.type",
                    "missing_required_parameter",
                    "Missing required parameter: 'method.type'.",
                )
            ),
            id="method without type",
        ),
        pytest.param(
            {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
            envelope(
                "unsupported_integration",
                "Weights & Biases is not set up on this service. Leave the integration out, or ask "
                "the operator to set it up: docs/trackers.md says how.",
                "integrations",
            ),
            id="integration",
        ),
        pytest.param(
            {"priority": 1001},
            bad_value("priority", "Input should be less than or equal to 1000"),
            id="priority 1001",
        ),
        pytest.param(
            {"priority": -1001},
            bad_value("priority", "Input should be greater than or equal to -1000"),
            id="priority -1001",
        ),
        pytest.param(
            {"priority": 0.5},
            bad_value("priority", "Input should be a valid integer"),
            id="priority of a half",
        ),
        pytest.param(
            {"priority": True},
            bad_value("priority", "Input should be a valid integer"),
            id="priority true",
        ),
        pytest.param(
            {"auto_start": "false"},
            bad_value("auto_start", "Input should be a valid boolean"),
            id="auto_start as a text",
        ),
        pytest.param(
            {"auto_start": 0},
            bad_value("auto_start", "Input should be a valid boolean"),
            id="auto_start 0",
        ),
        pytest.param(
            {"metadata": {str(number): "x" for number in range(17)}},
            bad_value(
                "metadata", "Dictionary should have at most 16 items after validation, not more"
            ),
            id="17 labels",
        ),
        pytest.param(
            {"metadata": {"k" * 65: "x"}},
            problems(
                (
                    "metadata",
                    "invalid_value",
                    "Invalid key in 'metadata': String should have at most 64 characters.",
                )
            ),
            id="long label",
        ),
        pytest.param(
            {"metadata": {"": "x"}},
            problems(
                (
                    "metadata",
                    "invalid_value",
                    "Invalid key in 'metadata': String should have at least 1 character.",
                )
            ),
            id="empty label",
        ),
        pytest.param(
            {"metadata": {"run": "x" * 513}},
            bad_value("metadata.run", "String should have at most 512 characters"),
            id="long value of a label",
        ),
        pytest.param(
            {"metadata": {"run": 5}},
            bad_value("metadata.run", "Input should be a valid string"),
            id="label of 5",
        ),
        pytest.param(
            {"seed": -1},
            bad_value("seed", "Input should be greater than or equal to 0"),
            id="seed -1",
        ),
        pytest.param(
            {"seed": 2**70},
            bad_value("seed", "Input should be less than or equal to 2147483647"),
            id="huge seed",
        ),
        pytest.param(
            {"suffix": "x" * 65},
            bad_value("suffix", "String should have at most 64 characters"),
            id="long suffix",
        ),
        pytest.param(
            {"suffix": "", "seed": True},
            problems(
                (
                    "suffix",
                    "invalid_value",
                    "Invalid value for 'suffix': String should have at least 1 character.",
                ),
                (
                    "seed",
                    "invalid_value",
                    "Invalid value for 'seed': Input should be a valid integer.",
                ),
            ),
            id="two at once",
        ),
    ],
)
def test_a_bad_parameter_of_a_job_is_refused(
    lab: Lab, changes: dict[str, Any], error: Body
) -> None:
    check(lab, lambda lab: lab.create_job(**changes), 400, error)


@pytest.mark.parametrize(
    ("knob", "value", "why"),
    [
        ("n_epochs", True, "Input should be a valid integer"),
        ("n_epochs", "8", "Input should be a valid integer"),
        ("n_epochs", 1.5, "Input should be a valid integer"),
        ("n_epochs", [3], "Input should be a valid integer"),
        ("n_epochs", 0, "Input should be greater than or equal to 1"),
        ("n_epochs", 51, "Input should be less than or equal to 50"),
        ("batch_size", 0, "Input should be greater than or equal to 1"),
        ("batch_size", 257, "Input should be less than or equal to 256"),
        ("batch_size", 2**63, "Input should be less than or equal to 256"),
        ("learning_rate", "2e-4", "Input should be a valid number"),
        ("learning_rate", 0, "Input should be greater than 0"),
        ("learning_rate", 1.01, "Input should be less than or equal to 1"),
        ("learning_rate_multiplier", -1, "Input should be greater than 0"),
        ("learning_rate_multiplier", 10_001, "Input should be less than or equal to 10000"),
        ("gradient_accumulation_steps", 0, "Input should be greater than or equal to 1"),
        ("gradient_accumulation_steps", 257, "Input should be less than or equal to 256"),
        ("lora_r", 0, "Input should be greater than or equal to 1"),
        ("lora_r", 257, "Input should be less than or equal to 256"),
        ("lora_alpha", 0, "Input should be greater than 0"),
        ("lora_alpha", 1025, "Input should be less than or equal to 1024"),
        ("lora_dropout", -0.1, "Input should be greater than or equal to 0"),
        ("lora_dropout", 1, "Input should be less than or equal to 0.99"),
        ("lora_dropout", 1 - 1e-16, "Input should be less than or equal to 0.99"),
        ("context_length", 15, "Input should be greater than or equal to 16"),
        ("context_length", 131_073, "Input should be less than or equal to 131072"),
        (
            "lr_scheduler",
            "exponential",
            "Input should be 'linear', 'cosine', 'constant' or 'constant_with_warmup'",
        ),
        ("overlong_row_behavior", "skip", "Input should be 'truncate', 'error' or 'drop'"),
        ("packing", True, "Input should be False"),
        ("template_date", "yesterday", "Input should be a valid date"),
        (
            "train_on",
            "answers",
            "Input should be 'all_assistant', 'last_assistant' or 'everything'",
        ),
        ("train_on_inputs", "yes", "Input should be a valid boolean"),
        ("warmup_ratio", -0.1, "Input should be greater than or equal to 0"),
        ("warmup_ratio", 1.1, "Input should be less than or equal to 1"),
        ("weight_decay", -1, "Input should be greater than or equal to 0"),
        ("weight_decay", 1.1, "Input should be less than or equal to 1"),
        ("max_grad_norm", 0, "Input should be greater than 0"),
        ("max_grad_norm", 1001, "Input should be less than or equal to 1000"),
        ("use_rslora", "no!", "Input should be a valid boolean"),
        ("use_dora", 2, "Input should be a valid boolean"),
        (
            "init_lora_weights",
            "pissa",
            "Input should be 'kaiming', 'gaussian', 'orthogonal', 'pissa_niter_16' or 'olora'",
        ),
        ("modules_to_save", "lm_head", "Input should be a valid list"),
        ("lora_layers", 0, NO_LAYERS),
        ("lora_layers", [], NO_LAYERS),
        ("lora_layers", [1, True], NO_LAYERS),
        ("lora_layers", "half", NO_LAYERS),
        ("warmup_steps", -1, "Input should be greater than or equal to 0"),
        ("min_lr_ratio", 1.1, "Input should be less than or equal to 1"),
        ("loraplus_lr_ratio", 0.5, "Input should be greater than or equal to 1"),
        ("adam_beta1", 1, "Input should be less than 1"),
        ("adam_beta2", -0.1, "Input should be greater than or equal to 0"),
        ("max_steps", 0, "Input should be greater than or equal to 1"),
        ("max_steps", 1_000_001, "Input should be less than or equal to 1000000"),
        ("logging_steps", 0, "Input should be greater than or equal to 1"),
        ("checkpoint_steps", 0, "Input should be greater than or equal to 1"),
        ("validation_split", 0, "Input should be greater than 0"),
        ("validation_split", 0.6, "Input should be less than or equal to 0.5"),
        ("keep_checkpoints", 0, "Input should be greater than or equal to 1"),
        ("n_evals", 1001, "Input should be less than or equal to 1000"),
        ("eval_steps", 0, "Input should be greater than or equal to 1"),
        ("early_stopping_patience", 0, "Input should be greater than or equal to 1"),
        ("early_stopping_threshold", -0.1, "Input should be greater than or equal to 0"),
        ("checkpoint_choice", "last", "Input should be 'final' or 'best'"),
    ],
)
def test_a_knob_out_of_range_is_refused_wherever_it_is_given(
    lab: Lab, knob: str, value: Any, why: str
) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {knob: value}}}

    check(
        lab,
        lambda lab: lab.with_knobs(**{knob: value}),
        400,
        bad_value(f"hyperparameters.{knob}", why),
    )
    check(
        lab,
        lambda lab: lab.create_job(method=method),
        400,
        bad_value(f"method.supervised.hyperparameters.{knob}", why),
    )


@pytest.mark.parametrize(
    ("knobs", "param", "message"),
    [
        pytest.param(
            {"learning_rate": 1e-4, "learning_rate_multiplier": 2},
            "learning_rate_multiplier",
            "Give either 'learning_rate' or 'learning_rate_multiplier', not both.",
            id="two learning rates",
        ),
        pytest.param(
            {"learning_rate_multiplier": 6000},
            "learning_rate",
            "'learning_rate' becomes 1.2. Input should be less than or equal to 1.",
            id="learning rate by multiplication",
        ),
        pytest.param(
            {"batch_size": 200, "gradient_accumulation_steps": 2},
            "batch_size",
            "'batch_size' becomes 400. Input should be less than or equal to 256.",
            id="batch size by multiplication",
        ),
        pytest.param(
            {"lora_r": 65},
            "lora_r",
            "'lora_r' can be at most 64 for tiny.",
            id="rank for this model",
        ),
        pytest.param(
            {"context_length": 513},
            "context_length",
            "'context_length' can be at most 512 tokens for tiny.",
            id="context of this model",
        ),
        pytest.param(
            {"lora_target_modules": ["q_proj", "qproj"]},
            "lora_target_modules",
            f"'qproj' is not a module that LoRA can target here: {TARGETS}.",
            id="unknown module",
        ),
        pytest.param(
            {"lora_target_modules": []},
            "lora_target_modules",
            f"Name at least one module that LoRA can target here: {TARGETS}.",
            id="no module",
        ),
        pytest.param(
            {"n_evals": 3},
            "n_evals",
            "'n_evals' needs a validation_file or a validation_split.",
            id="evaluations of nothing",
        ),
        pytest.param(
            {"early_stopping_patience": 3},
            "early_stopping_patience",
            "'early_stopping_patience' needs a validation_file or a validation_split.",
            id="early stopping by nothing",
        ),
        pytest.param(
            {"warmup_steps": 3, "warmup_ratio": 0.1},
            "warmup_steps",
            "Give either 'warmup_steps' or 'warmup_ratio', not both.",
            id="two warmups",
        ),
        pytest.param(
            {"warmup_steps": 3, "lr_scheduler": "constant"},
            "warmup_steps",
            "An 'lr_scheduler' of 'constant' has no warmup. Use 'constant_with_warmup'.",
            id="warmup of a constant",
        ),
        pytest.param(
            {"init_lora_weights": "orthogonal", "lora_r": 5},
            "init_lora_weights",
            "'orthogonal' needs an even 'lora_r', and it is 5.",
            id="orthogonal matrices of an odd rank",
        ),
        pytest.param(
            {"init_lora_weights": "olora", "use_rslora": True},
            "init_lora_weights",
            "'olora' cannot be combined with 'use_rslora'.",
            id="OLoRA and rsLoRA",
        ),
        pytest.param(
            {"init_lora_weights": "olora", "weight_decay": 0.1},
            "weight_decay",
            "With an 'init_lora_weights' of 'olora', 'weight_decay' would shrink weights of the "
            "base model itself. Leave it out.",
            id="decay of the base model",
        ),
        pytest.param(
            {"init_lora_weights": "pissa_niter_16", "lora_r": 33},
            "lora_r",
            "'lora_r' can be at most 32 for tiny with 'pissa_niter_16', which doubles it.",
            id="a rank that is too large when it is doubled",
        ),
        pytest.param(
            {"min_lr_ratio": 0.1, "lr_scheduler": "constant"},
            "min_lr_ratio",
            "'min_lr_ratio' needs a rate that falls. 'constant' does not.",
            id="lowest rate of a constant",
        ),
        pytest.param(
            {"eval_steps": 3},
            "eval_steps",
            "'eval_steps' needs a validation_file or a validation_split.",
            id="evaluations of nothing every three steps",
        ),
        pytest.param(
            {"early_stopping_threshold": 0.1},
            "early_stopping_threshold",
            "'early_stopping_threshold' needs an 'early_stopping_patience'.",
            id="threshold of nothing",
        ),
        pytest.param(
            {"checkpoint_choice": "best"},
            "checkpoint_choice",
            "A 'checkpoint_choice' of 'best' needs a validation_file or a validation_split.",
            id="best of nothing",
        ),
    ],
)
def test_knobs_that_do_not_fit_the_job_are_refused(
    lab: Lab, knobs: dict[str, Any], param: str, message: str
) -> None:
    error = envelope("invalid_value", message, f"hyperparameters.{param}")

    check(lab, lambda lab: lab.with_knobs(**knobs), 400, error)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        pytest.param(
            "q_proj",
            [
                ("lora_target_modules", "Input should be a valid list"),
                ("lora_target_modules", "Input should be 'all-linear', 'attention' or 'mlp'"),
            ],
            id="a name",
        ),
        pytest.param(
            ["q_proj", 5],
            [
                ("lora_target_modules[1]", "Input should be a valid string"),
                ("lora_target_modules", "Input should be 'all-linear', 'attention' or 'mlp'"),
            ],
            id="a number in the list",
        ),
    ],
)
def test_a_knob_of_two_kinds_says_what_each_of_them_is(
    lab: Lab, value: Any, found: list[tuple[str, str]]
) -> None:
    error = problems(
        *(
            (
                f"hyperparameters.{path}",
                "invalid_value",
                f"Invalid value for 'hyperparameters.{path}': {why}.",
            )
            for path, why in found
        )
    )

    check(lab, lambda lab: lab.with_knobs(lora_target_modules=value), 400, error)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_rnak", "Unknown parameter: 'hyperparameters.lora_rnak'. Did you mean 'lora_rank'?"),
        ("epochs", "Unknown parameter: 'hyperparameters.epochs'. Did you mean 'n_epochs'?"),
        (
            "beta",
            (
                "Unknown parameter: 'hyperparameters.beta'. It belongs to preference tuning: give "
                "it in 'method.dpo.hyperparameters'."
            ),
        ),
        (
            "lora_rank",
            "'hyperparameters.lora_rank' is given twice, under two names. Keep one.",
        ),
    ],
)
def test_an_unknown_knob_is_refused_with_the_nearest_known_one(
    lab: Lab, name: str, message: str
) -> None:
    error = problems((f"hyperparameters.{name}", "unknown_parameter", message))

    check(lab, lambda lab: lab.with_knobs(**{"lora_r": 8, name: 8}), 400, error)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        pytest.param(b"", "String should have at least 1 character", id="empty"),
        pytest.param(b"k" * 256, "String should have at most 255 characters", id="long"),
        pytest.param(b"k\xe9y", "String should match pattern '^[ -~]+$'", id="not ASCII"),
        pytest.param(b"k\ty", "String should match pattern '^[ -~]+$'", id="tab"),
    ],
)
@pytest.mark.parametrize("route", ["create", "rerun"])
def test_a_key_must_be_short_and_printable(lab: Lab, key: bytes, why: str, route: str) -> None:
    headers = {b"Idempotency-Key": key}
    body = {"model": "tiny", "training_file": lab.text_file}

    def send(lab: Lab) -> Answer:
        if route == "rerun":
            return lab.rerun(headers=headers)
        return lab.post("/fine_tuning/jobs", json=body, headers=headers)

    check(lab, send, 400, bad_value("Idempotency-Key", why))


def test_a_key_with_another_body_is_refused(lab: Lab) -> None:
    headers = {"Idempotency-Key": "k" * 255}
    body = {"model": "tiny", "training_file": lab.text_file}
    job_id = lab.post("/fine_tuning/jobs", json=body, headers=headers).json()["id"]
    error = envelope(
        "idempotency_key_reused",
        f"The Idempotency-Key '{'k' * 80}' was already used with another body, which made the job "
        f"{job_id}. Use a new key for each new job.",
        "Idempotency-Key",
    )

    def send(lab: Lab) -> Answer:
        return lab.post("/fine_tuning/jobs", json=body | {"seed": 1}, headers=headers)

    check(lab, send, 400, error)


@pytest.mark.parametrize(
    ("send", "status", "error"),
    [
        pytest.param(
            lambda lab: lab.create_job(training_file="file-nope"),
            404,
            lambda _: envelope("file_not_found", "No such file: file-nope", "training_file"),
            id="unknown training file",
        ),
        pytest.param(
            lambda lab: lab.create_job(validation_file="x" * 100_000),
            404,
            lambda _: envelope("file_not_found", f"No such file: {'x' * 80}", "validation_file"),
            id="unknown validation file",
        ),
        pytest.param(
            lambda lab: lab.create_job(validation_file=lab.text_file),
            400,
            lambda _: envelope(
                "invalid_value",
                "The validation file must be another file than the training file.",
                "validation_file",
            ),
            id="same file twice",
        ),
        pytest.param(
            lambda lab: lab.create_job(training_file=lab.tools_file),
            400,
            lambda lab: envelope(
                "tools_not_supported",
                f"{lab.tools_file} contains tools, and the chat template of tiny cannot show them.",
                "training_file",
            ),
            id="tools",
        ),
        pytest.param(
            lambda lab: lab.create_job(validation_file=lab.preference_file),
            400,
            lambda lab: envelope(
                "method_format_mismatch",
                f"{lab.preference_file} has the format preference, and a job with the method "
                "'supervised' needs one answer per example. Use such a file, or set the type of "
                "the method to 'dpo'.",
                "validation_file",
            ),
            id="preferences",
        ),
        pytest.param(
            lambda lab: lab.create_job(method={"type": "dpo"}),
            400,
            lambda lab: envelope(
                "method_format_mismatch",
                f"{lab.text_file} has the format text, and a job with the method 'dpo' needs "
                "preferences. Use a file with two answers to each prompt, as docs/files.md "
                "describes it, or set the type of the method to 'supervised'.",
                "training_file",
            ),
            id="no preferences",
        ),
        pytest.param(
            lambda lab: lab.post(f"/fine_tuning/jobs/{lab.cancelled_job}/pause"),
            400,
            lambda lab: envelope(
                "job_not_pausable",
                f"Job {lab.cancelled_job} has already been cancelled, so it cannot be paused.",
            ),
            id="pause a cancelled job",
        ),
        pytest.param(
            lambda lab: lab.post(f"/fine_tuning/jobs/{lab.cancelled_job}/resume"),
            400,
            lambda lab: envelope(
                "job_not_resumable",
                f"Job {lab.cancelled_job} has already been cancelled, so it cannot be resumed. "
                "POST .../rerun creates a new job from it.",
            ),
            id="resume a cancelled job",
        ),
        pytest.param(
            lambda lab: lab.delete(f"/fine_tuning/jobs/{lab.queued_job}"),
            400,
            lambda lab: envelope(
                "job_not_deletable",
                f"Job {lab.queued_job} is queued, and only a job that has ended can be deleted. "
                "Cancel it first.",
            ),
            id="delete a queued job",
        ),
        pytest.param(
            lambda lab: lab.rerun(json={"seed": 1, "models": "tiny"}),
            400,
            lambda _: problems(
                ("seed", "unknown_parameter", "Unknown parameter: 'seed'."),
                ("models", "unknown_parameter", "Unknown parameter: 'models'."),
            ),
            id="rerun with another seed",
        ),
        pytest.param(
            lambda lab: lab.rerun(json=[]),
            400,
            lambda _: problems(("", "invalid_value", NO_OBJECT)),
            id="rerun with an array",
        ),
        pytest.param(
            lambda lab: lab.rerun(content=b"{", headers={"content-type": "application/json"}),
            400,
            lambda _: envelope(
                "invalid_json",
                f"{BAD_JSON}Expecting property name enclosed in double quotes at column 2.",
            ),
            id="rerun with half an object",
        ),
        pytest.param(
            lambda lab: lab.rerun(content=b"{}", headers={"content-type": "text/plain"}),
            415,
            lambda _: envelope("unsupported_media_type", NO_JSON),
            id="rerun with a text",
        ),
        pytest.param(
            lambda lab: lab.rerun(content=iter([b"{}"]), headers={"content-type": "text/plain"}),
            415,
            lambda _: envelope("unsupported_media_type", NO_JSON),
            id="rerun with a text of unknown length",
        ),
        pytest.param(
            lambda lab: lab.delete(f"/files/{lab.text_file}"),
            400,
            lambda lab: envelope(
                "file_in_use",
                f"{lab.text_file} is needed by the job {lab.queued_job}. Cancel that job, or wait "
                "until it ends.",
            ),
            id="delete a file in use",
        ),
        pytest.param(
            lambda lab: lab.delete("/models/tiny"),
            400,
            lambda _: envelope(
                "model_not_deletable",
                "tiny is a base model, and only tuned models can be deleted here.",
                "model",
            ),
            id="delete a base model",
        ),
        pytest.param(
            lambda lab: lab.delete("/models/us%2Fabsent"),
            400,
            lambda _: envelope(
                "model_not_deletable",
                "us/absent is a base model, and only tuned models can be deleted here.",
                "model",
            ),
            id="delete a base model by its repository",
        ),
        pytest.param(
            lambda lab: lab.delete("/models/ft:tiny:tunery::nope"),
            404,
            lambda _: envelope("model_not_found", "No such model: ft:tiny:tunery::nope", "model"),
            id="delete an unknown model",
        ),
        pytest.param(
            lambda lab: lab.get("/models/absent"),
            404,
            lambda _: envelope("model_not_found", "No such model: absent", "model"),
            id="model that is not installed",
        ),
        pytest.param(
            lambda lab: lab.get(f"/fine_tuning/jobs/{lab.queued_job}/adapter"),
            400,
            lambda lab: envelope(
                "adapter_not_ready",
                f"Job {lab.queued_job} is queued, so it has no final adapter. To download a "
                "checkpoint that it has made, add ?checkpoint=STEP.",
            ),
            id="adapter of a queued job",
        ),
        pytest.param(
            lambda lab: lab.get(f"/fine_tuning/jobs/{lab.queued_job}/adapter?checkpoint=7"),
            404,
            lambda lab: envelope(
                "checkpoint_not_found", f"Job {lab.queued_job} has no checkpoint 7.", "checkpoint"
            ),
            id="unknown checkpoint",
        ),
        pytest.param(
            lambda lab: lab.get(
                f"/fine_tuning/jobs/{lab.queued_job}/adapter?checkpoint={'9' * 5000}"
            ),
            404,
            lambda lab: envelope(
                "checkpoint_not_found",
                f"Job {lab.queued_job} has no checkpoint {'9' * 80}.",
                "checkpoint",
            ),
            id="checkpoint of 5,000 digits",
        ),
        pytest.param(
            lambda lab: lab.get(f"/fine_tuning/jobs/{lab.queued_job}/metrics?step_from={'9' * 20}"),
            400,
            lambda _: bad_value("step_from", "Input should be less than or equal to 1000000000"),
            id="step that no database can hold",
        ),
        pytest.param(
            lambda lab: lab.get("/fine_tuning/jobs?after=file-1"),
            400,
            lambda _: envelope(
                "invalid_cursor",
                "'after' must be the id of an item in this list, which begins with ftjob-",
                "after",
            ),
            id="cursor of another list",
        ),
        pytest.param(
            lambda lab: lab.get(f"/fine_tuning/jobs/{lab.queued_job}/events?limit=0"),
            400,
            lambda _: bad_value("limit", "Input should be greater than or equal to 1"),
            id="limit 0",
        ),
        pytest.param(
            lambda lab: lab.get("/files?limit=10001"),
            400,
            lambda _: bad_value("limit", "Input should be less than or equal to 10000"),
            id="huge limit",
        ),
        pytest.param(
            lambda lab: lab.get("/files?order=up"),
            400,
            lambda _: bad_value("order", "Input should be 'asc' or 'desc'"),
            id="unknown order",
        ),
        pytest.param(
            lambda lab: lab.get("/files/%00%ff"),
            404,
            lambda _: envelope("file_not_found", "No such file: \0\N{REPLACEMENT CHARACTER}"),
            id="unprintable id",
        ),
        *(
            pytest.param(
                lambda lab, path=path: lab.get(path),
                404,
                lambda _: envelope("job_not_found", "No such fine-tuning job: ftjob-nope"),
                id=f"unknown job: {path}",
            )
            for path in (
                "/fine_tuning/jobs/ftjob-nope",
                "/fine_tuning/jobs/ftjob-nope/events",
                "/fine_tuning/jobs/ftjob-nope/checkpoints",
                "/fine_tuning/jobs/ftjob-nope/metrics",
                "/fine_tuning/jobs/ftjob-nope/adapter",
            )
        ),
        *(
            pytest.param(
                lambda lab, what=what: lab.post(f"/fine_tuning/jobs/ftjob-nope/{what}"),
                404,
                lambda _: envelope("job_not_found", "No such fine-tuning job: ftjob-nope"),
                id=f"{what} an unknown job",
            )
            for what in ("cancel", "pause", "resume", "rerun")
        ),
        pytest.param(
            lambda lab: lab.delete("/fine_tuning/jobs/ftjob-nope"),
            404,
            lambda _: envelope("job_not_found", "No such fine-tuning job: ftjob-nope"),
            id="delete an unknown job",
        ),
        pytest.param(
            lambda lab: lab.create_job(
                hyperparameters={"n_epochs": 3, "lora_rank": 8},
                method=supervised(n_epochs=3, lora_r=16),
            ),
            400,
            lambda _: envelope(
                "invalid_value",
                "'lora_r' is 8 in 'hyperparameters' and 16 in 'method.supervised.hyperparameters'. "
                "Give it in one place, or give both the same value.",
                "hyperparameters.lora_r",
            ),
            id="contradiction",
        ),
        pytest.param(
            lambda lab: lab.create_job(
                hyperparameters={"lora_target_modules": ["q_proj"]},
                method=supervised(lora_target_modules="all-linear"),
            ),
            400,
            lambda _: envelope(
                "invalid_value",
                "'lora_target_modules' is [\"q_proj\"] in 'hyperparameters' and \"all-linear\" in "
                "'method.supervised.hyperparameters'. Give it in one place, or give both the same "
                "value.",
                "hyperparameters.lora_target_modules",
            ),
            id="contradiction of two types",
        ),
        pytest.param(
            lambda lab: lab.get("/fine_tuning/jobs/"),
            404,
            lambda _: envelope(
                "unknown_url",
                "No such route: GET /v1/fine_tuning/jobs/. Remove the slash at the end of the "
                "path.",
            ),
            id="slash at the end",
        ),
        pytest.param(
            lambda lab: lab.client.put("/v1/files"),
            405,
            lambda _: envelope("method_not_allowed", "/v1/files does not support PUT."),
            id="wrong method",
        ),
    ],
)
def test_what_cannot_be_granted_is_refused(
    lab: Lab, send: Send, status: int, error: Callable[[Lab], Body]
) -> None:
    check(lab, send, status, error(lab))


def test_a_wrong_method_is_told_the_right_ones(lab: Lab) -> None:
    assert lab.client.put("/v1/models/tiny").headers["allow"] == "DELETE, GET"


def test_cancelling_again_is_no_error(lab: Lab) -> None:
    answer = lab.post(f"/fine_tuning/jobs/{lab.cancelled_job}/cancel")

    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            dict.fromkeys(
                [
                    "validation_file",
                    "suffix",
                    "seed",
                    "metadata",
                    "method",
                    "hyperparameters",
                    "integrations",
                    "auto_start",
                    "priority",
                ]
            ),
            id="nulls",
        ),
        pytest.param({"metadata": {}, "integrations": [], "hyperparameters": {}}, id="empty"),
        pytest.param({"method": {"type": "supervised"}}, id="method without settings"),
        pytest.param(
            {"hyperparameters": dict.fromkeys(["n_epochs", "batch_size", "lora_r"], "auto")},
            id="auto",
        ),
        pytest.param({"hyperparameters": {"learning_rate": 1}}, id="whole number for a float"),
        pytest.param(
            {
                "hyperparameters": {"n_epochs": 2, "max_steps": 5, "batch_size": None}
                | {"learning_rate": 1.0, "lora_rank": 8, "weight_decay": "auto"},
                "method": supervised(
                    n_epochs="auto",
                    max_steps=None,
                    batch_size=2,
                    learning_rate=1,
                    lora_r=8,
                    weight_decay=0.1,
                ),
            },
            id="two places that agree",
        ),
        pytest.param({"hyperparameters": {"lora_target_modules": "all-linear"}}, id="all-linear"),
    ],
)
def test_what_only_looks_bad_is_accepted(lab: Lab, changes: dict[str, Any]) -> None:
    answer = lab.create_job(**changes)

    assert answer.status_code == 200, answer.text


def test_an_empty_cursor_is_none(lab: Lab) -> None:
    assert lab.get("/files?after=").json()["data"] == lab.get("/files").json()["data"]


def test_a_body_in_another_charset_is_still_read_as_utf8(lab: Lab) -> None:
    body = json.dumps({"model": "tiny", "training_file": lab.text_file, "suffix": "é"})

    answer = lab.send_json(body.encode(), "application/json; charset=latin-1")

    assert answer.json()["user_provided_suffix"] == "é"
