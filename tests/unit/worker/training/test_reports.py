"""What a checkpoint says about itself: the loss log, the picture, the model card."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from app.core.job.loss_log import StepMetrics, csv_texts, json_texts
from tests.builders import build_base_metrics
from tests.tiny import write_job
from worker.training.artifacts.loss_log import LossLog, draw_losses
from worker.training.artifacts.model_card import write_model_card
from worker.training.data.stop_tokens import StopTokens

STOP = StopTokens(generation_config={}, base={1: "</s>"}, taught={"<|im_end|>": 2})
SVG = "{http://www.w3.org/2000/svg}"


def row(step: int, *, valid_loss: float | None = None) -> StepMetrics:
    return StepMetrics(
        step=step,
        epoch=step / 10,
        train_loss=4 / step,
        train_mean_token_accuracy=0.5,
        valid_loss=valid_loss,
        valid_mean_token_accuracy=None if valid_loss is None else 0.25,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens_seen=100 * step,
        elapsed_s=step / 2,
    )


def log_of(tmp_path: Path, steps: int, *, evaluated_every: int | None = None) -> LossLog:
    log = LossLog(tmp_path / "log.jsonl")
    for step in range(1, steps + 1):
        is_evaluated = evaluated_every is not None and step % evaluated_every == 0
        log.append(row(step, valid_loss=3.0 if is_evaluated else None))
    return log


def rows_in(tmp_path: Path) -> list[StepMetrics]:
    with (tmp_path / "log.jsonl").open("rb") as lines:
        return list(map(StepMetrics.model_validate_json, lines))


def test_a_loss_log_gives_back_every_row(tmp_path: Path) -> None:
    log = log_of(tmp_path, 5)

    assert rows_in(tmp_path) == [row(step) for step in range(1, 6)]
    assert len(log) == 5


def test_a_new_loss_log_replaces_the_old_one(tmp_path: Path) -> None:
    log_of(tmp_path, 5)
    log_of(tmp_path, 1)

    assert rows_in(tmp_path) == [row(1)]


def test_a_loss_log_of_known_length_is_continued(tmp_path: Path) -> None:
    log_of(tmp_path, 5)

    log = LossLog(tmp_path / "log.jsonl", length=5)
    log.append(row(6))

    assert rows_in(tmp_path) == [row(step) for step in range(1, 7)]
    assert len(log) == 6
    assert list(log.losses.train) == [row(step).train_loss for step in range(1, 7)]


@pytest.mark.parametrize("resumed_at", [None, 4])
def test_the_tables_of_a_loss_log_have_every_row_so_far(
    tmp_path: Path, resumed_at: int | None
) -> None:
    log = log_of(tmp_path, resumed_at or 0)
    if resumed_at is not None:
        log = LossLog(tmp_path / "log.jsonl", length=resumed_at)
    for step in range((resumed_at or 0) + 1, 7):
        log.append(row(step, valid_loss=3.0 if step == 5 else None))
        (tmp_path / str(step)).mkdir()
        log.copy_tables(tmp_path / str(step))

        rows = rows_in(tmp_path)
        assert (tmp_path / str(step) / "metrics.csv").read_text() == "".join(csv_texts([rows]))
        assert (tmp_path / str(step) / "metrics.jsonl").read_text() == "".join(json_texts([rows]))


def test_a_checkpoint_does_not_parse_the_rows_before_it(tmp_path: Path) -> None:
    """Or the log of a long job with many checkpoints would take quadratic time."""
    log = log_of(tmp_path, 1000, evaluated_every=100)
    content = (tmp_path / "log.jsonl").read_bytes()
    last = content.splitlines(keepends=True)[-1]
    (tmp_path / "log.jsonl").write_bytes(b"?" * (len(content) - len(last)) + last)

    (tmp_path / "checkpoint").mkdir()
    log.copy_tables(tmp_path / "checkpoint")
    draw_losses(log.losses, title="t")

    assert log.sample(1) == [row(1000, valid_loss=3.0)]


@pytest.mark.parametrize(
    ("lines", "end"),
    [([1, 2], "\n"), ([1, 2, 3, 4], "\n"), ([1, 3, 2], "\n"), ([1, 2, 3], ""), ([], "")],
    ids=["short", "long", "disorder", "no-end", "empty"],
)
def test_a_loss_log_of_other_steps_is_not_continued(
    tmp_path: Path, lines: list[int], end: str
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(row(step).model_dump_json() for step in lines) + end)

    with pytest.raises((RuntimeError, ValueError)):
        LossLog(path, length=3)


@pytest.mark.parametrize(
    ("steps", "evaluated_every", "expected"),
    [
        (3, None, [1, 2, 3]),
        (100, None, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (100, 25, [25, 50, 75, 100]),
    ],
)
def test_a_sample_of_a_log_has_its_end_and_prefers_evaluations(
    tmp_path: Path, steps: int, evaluated_every: int | None, expected: list[int]
) -> None:
    sample = log_of(tmp_path, steps, evaluated_every=evaluated_every).sample(10)

    assert [each.step for each in sample] == expected


@pytest.mark.parametrize("resumed_at", [None, 40])
def test_a_log_that_begins_with_the_base_model_shows_it_in_the_sample_and_the_picture(
    tmp_path: Path, resumed_at: int | None
) -> None:
    log = LossLog(tmp_path / "log.jsonl")
    log.append(build_base_metrics())
    for step in range(1, 41):
        log.append(row(step, valid_loss=3.0))
    if resumed_at is not None:
        log = LossLog(tmp_path / "log.jsonl", length=resumed_at)

    assert [each.step for each in log.sample(3)] == [0, 1, 14, 27, 40]
    assert (len(log), log.losses.valid[:2]) == (40, [(0, 4.0), (1, 3.0)])
    assert "validation" in draw_losses(log.losses, title="t")


@pytest.mark.parametrize(("steps", "evaluated_every"), [(1, None), (1, 1), (30, 10), (5_000, 500)])
def test_a_picture_of_any_log_is_valid_and_small(
    tmp_path: Path, steps: int, evaluated_every: int | None
) -> None:
    log = log_of(tmp_path, steps, evaluated_every=evaluated_every)

    picture = draw_losses(log.losses, title="Loss of ft:a<b>:c & d")

    root = ET.fromstring(picture)  # noqa: S314 - we have just written it
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert root.tag == f"{SVG}svg"
    assert "Loss of ft:a<b>:c & d" in texts
    assert ("validation" in texts) == (evaluated_every is not None)
    assert len(list(root.iter(f"{SVG}circle"))) == (
        0 if evaluated_every is None else steps // evaluated_every
    )
    assert "nan" not in picture
    assert len(picture) < 30_000


def test_every_point_is_inside_the_picture(tmp_path: Path) -> None:
    picture = draw_losses(log_of(tmp_path, 50, evaluated_every=10).losses, title="t")

    lines = re.findall(r' d="(.*?)"', picture)
    points = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", " ".join(lines))
    assert [line.count("L") for line in lines] == [49, 49, 4]
    assert len(points) == 50 + 50 + 5
    assert all(0 <= float(x) <= 800 and 0 <= float(y) <= 450 for x, y in points)


def test_the_same_log_gives_the_same_picture(tmp_path: Path) -> None:
    log = log_of(tmp_path, 20, evaluated_every=10)

    assert draw_losses(log.losses, title="t") == draw_losses(log.losses, title="t")


def test_a_picture_loads_nothing_and_has_no_date(tmp_path: Path) -> None:
    picture = draw_losses(log_of(tmp_path, 20, evaluated_every=10).losses, title="t")

    assert {*re.findall(r"\w*://[\w.]+", picture)} == {"http://www.w3.org"}, "its namespace"
    assert "<script" not in picture
    assert "url(" not in picture
    assert not re.search(r"20\d\d-\d\d", picture)


def test_a_model_card_names_base_data_settings_losses_and_how_to_load(tmp_path: Path) -> None:
    spec = write_job(
        tmp_path / "job",
        [{"text": "a"}],
        base_model=tmp_path,
        validation=[{"text": "b"}],
        learning_rate=3e-4,
    )

    card = write_model_card(
        spec, step=20, rows=[row(10), row(20, valid_loss=2.5)], stop_tokens=STOP
    )

    assert card.startswith('---\nbase_model: "org/tiny"\nlibrary_name: peft\nlicense: "apache-2.0"')
    assert spec.training_file.sha256 in card
    assert "validation.jsonl" in card
    assert "| learning_rate | 0.0003 |" in card
    assert "| lora.target_modules | `q_proj`, `v_proj` |" in card
    assert "| 20 | 2.00 | 0.2000 | 2.5000 | 25.0% |" in card
    assert "PeftModel.from_pretrained(base" in card
    assert "`docs/use-your-model.md`" in card
    assert "ends an answer with `<|im_end|>`" in card
    assert f"vllm serve org/tiny --revision {'c' * 40} --enable-lora --max-lora-rank 8 " in card


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("org/tiny", "the losses below are not\nthose of the repository's own weights"),
        ("q3b", "A repository with a similar name is another model"),
    ],
    ids=["converted", "directory"],
)
def test_the_card_says_where_the_weights_are_when_no_commit_names_them(
    tmp_path: Path, repo: str, said: str
) -> None:
    spec = write_job(tmp_path / "job", [{"text": "a"}], base_model=tmp_path)
    changes = {"id": "ours", "repo": repo, "revision": None}
    own = spec.model_copy(update={"base_model": spec.base_model.model_copy(update=changes)})

    card = write_model_card(own, step=20, rows=[row(20)], stop_tokens=STOP)

    assert said in card
    assert "A LoRA adapter for the base model `ours`" in card
    assert "BASE is `models/ours` in the service's data directory" in card
    assert 'AutoModelForCausalLM.from_pretrained("BASE")' in card
    assert "vllm serve BASE --enable-lora" in card
    assert ("base_model: " in card) == (repo == "org/tiny")
    assert "q3b" not in card
    assert said not in write_model_card(spec, step=20, rows=[row(20)], stop_tokens=STOP)
