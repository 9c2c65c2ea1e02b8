"""Job files: what is read from them, and what is said about mistakes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from app.core.job.training_config import DpoSettings, TrainingConfig
from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import as_hyperparameters
from tests.builders import TEXT_LINE
from tunery.cli import cli
from tunery.client.job_file import JobFile, JobFileError, read_job_file, to_yaml

HEAD = "model: tiny\ntraining_file: file-01k9\n"

JOB: dict[str, Any] = {
    "model": "tiny",
    "training_file": "file-01k9",
    "validation_file": None,
    "user_provided_suffix": "no",
    "seed": 7,
    "recipe": "reference",
    "priority": 0,
    "metadata": {"version": "1.10", "rate": "1e-4", "day": "2026-11-28"},
    "integrations": [],
    "eval_prompts": ["Hi", "yes"],
    "eval_prompts_at_checkpoints": True,
    "allow_inexact_resume": False,
    "method": {"type": "supervised"},
    "hyperparameters": as_hyperparameters(
        TrainingConfig(seed=7, learning_rate=1e-5), multiplier=0.05
    ),
}


def read(tmp_path: Path, text: str | bytes) -> JobFile:
    path = tmp_path / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_job_file(path)


def explain(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(JobFileError) as caught:
        read(tmp_path, text)
    return str(caught.value)


def test_a_file_has_the_fields_of_a_request(tmp_path: Path) -> None:
    job = read(
        tmp_path,
        HEAD + "suffix: no\nmetadata: {on: yes, 1: off}\nauto_start: false\n"
        "hyperparameters:\n  learning_rate: 1e-4\n  template_date: 2026-11-28\n  lora_rank: 0x10\n",
    )

    assert job.uploads == {}
    assert job.content == {
        "model": "tiny",
        "training_file": "file-01k9",
        "suffix": "no",
        "metadata": {"on": "yes", "1": "off"},
        "auto_start": False,
        "priority": 0,
        "hyperparameters": {
            "learning_rate": 1e-4,
            "template_date": "2026-11-28",
            "lora_r": 16,
        },
    }


def test_a_path_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_bytes(TEXT_LINE)

    job = read(tmp_path, "model: tiny\ntraining_file: data/train.jsonl\n")

    assert job.uploads == {"training_file": tmp_path / "data/train.jsonl"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "sufix: a\n", "job.yaml line 3: Unknown field 'sufix'. Did you mean 'suffix'?"),
        (HEAD + "hyperparameters:\n  n_epoch: 1\n", "line 4: Unknown field"),
        (HEAD + "learning_rate: 0.1\n", "line 3: 'learning_rate' is a hyperparameter."),
        (HEAD + "suffix: a\nsuffix: b\n", "line 4: 'suffix' is given twice, first in line 3."),
        (
            HEAD + "hyperparameters: {lora_r: 8, lora_rank: 8}\n",
            "line 3: 'hyperparameters.lora_rank' is given twice, under two names.",
        ),
        ("training_file: file-1\n", "job.yaml: 'model' is missing."),
        ("model:\ntraining_file: file-1\n", "line 1: Invalid value for 'model'"),
        (
            HEAD + "hyperparameters:\n  # too much\n  learning_rate: 2\n",
            "line 5: Invalid value for 'hyperparameters.learning_rate': Input should be less",
        ),
        (HEAD + "metadata:\n  version: 1.10\n", "line 4: Invalid value for 'metadata.version'"),
        (HEAD + "metadata:\n  version: 1.10\n", 'Put it in quotes: "1.10".'),
        (HEAD + "auto_start: no\n", "Write true or false."),
        (HEAD + "hyperparameters: {n_epochs: '3'}\n", "Write the number without quotes."),
        (HEAD + "hyperparameters: {n_epochs: 1e400}\n", "line 3: Invalid value"),
        (HEAD + f"seed: {'9' * 5000}\n", "line 3: 9999"),
        (HEAD + "hyperparameters:\n- n_epochs: 1\n", "line 3: Invalid value"),
        (HEAD + "metadata: {" + "a" * 65 + ": b}\n", "line 3: Invalid key in 'metadata'"),
        (
            HEAD + "hyperparameters: {n_epochs: 1}\n"
            "method: {type: supervised, supervised: {hyperparameters: {n_epochs: 2}}}\n",
            "job.yaml: 'n_epochs' is 1 in 'hyperparameters' and 2",
        ),
        ("model: tiny\ntraining_file: train.jsonl\n", "line 2: 'training_file': there is no file"),
        ("model: tiny\ntraining_file: ''\n", "line 2: 'training_file': there is no file"),
        ("", "job.yaml: The file must have fields"),
        ("- model: tiny\n", "job.yaml: The file must have fields"),
        (HEAD + "metadata: {a: b\n", "This is not YAML"),
        (HEAD + "metadata:\n\ta: b\n", "line 4: This is not YAML"),
        (HEAD + "metadata:\n\ta: b\n", "Indent with spaces, not with tabs."),
        (HEAD + "---\n" + HEAD, "line 3: This is not YAML"),
        (HEAD + "? [a]\n: b\n", "line 3: A key must be a word"),
        (HEAD + "seed: !!python/name:os.system ''\n", "line 3: The tag"),
        (HEAD + "metadata: &m {a: b}\nmethod: *m\n", "line 4: Aliases such as *name"),
        (HEAD + "suffix: \x07\n", "line 3: The line has a control character."),
        (HEAD.encode() + b"suffix: \xff\n", "line 3: The text is not UTF-8."),
        (HEAD + "seed: " + "[" * 5000, "line 3: Values are nested in more than 20 levels."),
        (HEAD + "#" * 300_000, "job.yaml: The file has 262,145 bytes"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_its_fix(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    assert message in explain(tmp_path, text)


def test_every_mistake_is_named_in_a_line_of_its_own(tmp_path: Path) -> None:
    explained = explain(tmp_path, HEAD + "sufix: a\nseed: -1\n")

    assert [line.partition(":")[0] for line in explained.splitlines()] == [
        "job.yaml line 3",
        "job.yaml line 4",
    ]


def test_a_job_becomes_a_file_of_a_job_like_it(tmp_path: Path) -> None:
    written = to_yaml(JOB)
    job = read(tmp_path, written)

    kept = {name: value for name, value in JOB["hyperparameters"].items() if value is not None}
    assert JobCreate.model_validate(job.content).given_hyperparameters() == {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in kept.items()
        if name not in ("learning_rate_multiplier", "train_on_inputs")
    }
    assert job.content["metadata"] == JOB["metadata"]
    assert (job.content["suffix"], job.content["seed"]) == ("no", 7)
    assert yaml.safe_load(written)["metadata"] == JOB["metadata"], "other readers see texts too"


def test_a_job_on_preferences_becomes_a_file_with_its_method(tmp_path: Path) -> None:
    config = TrainingConfig(seed=7, dpo=DpoSettings(beta=0.3))
    shown = as_hyperparameters(config, multiplier=1.0)

    job = read(tmp_path, to_yaml(JOB | {"method": {"type": "dpo"}, "hyperparameters": shown}))

    request = JobCreate.model_validate(job.content)
    assert request.method_type == "dpo"
    assert request.hyperparameters is None
    given = request.given_hyperparameters()
    assert (given["beta"], given["label_smoothing"], given["reference_free"]) == (0.3, 0, False)


def test_a_hyperparameter_of_preferences_is_sent_to_its_place(tmp_path: Path) -> None:
    explained = explain(tmp_path, HEAD + "hyperparameters: {beta: 0.3}\n")

    assert "Unknown field 'hyperparameters.beta'. It belongs to preference tuning" in explained


def test_init_writes_an_example_that_can_be_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_bytes(TEXT_LINE)
    Path("validation.jsonl").write_bytes(TEXT_LINE)

    assert CliRunner().invoke(cli, ["init"]).exit_code == 0

    example = Path("job.yaml").read_text("utf-8")
    assert read_job_file(Path("job.yaml")).uploads == {"training_file": Path("train.jsonl")}
    every_setting = re.sub(r"^( *)# (\w+: )", r"\1\2", example, flags=re.MULTILINE)
    job = read(tmp_path, re.sub(r"^yaml.*$", "", every_setting, flags=re.MULTILINE))
    assert len(job.content["hyperparameters"]) == 16
    assert job.content["metadata"] == {"team": "search", "version": "1.10"}


def test_init_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text("mine", "utf-8")

    again = CliRunner().invoke(cli, ["init"])

    assert again.exit_code == 2
    assert "job.yaml exists already" in again.stderr
    assert Path("job.yaml").read_text("utf-8") == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "job.yaml"]
