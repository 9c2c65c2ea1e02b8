"""The benchmark runs from end to end. What it measures here means nothing: no time is looked at."""

import re
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree as ET

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import training
from benchmarks.chart import Bar, draw_bars
from benchmarks.docstrings import SYSTEM_PROMPT, DataKind, choose_examples
from benchmarks.matrix_products import measure
from benchmarks.options import Bench, open_bench, read_options
from benchmarks.random_model import write_random_model
from benchmarks.report import load_results, write_report
from benchmarks.trainers import plain, tunery
from tests.tiny import write_tiny_model

SVG = "{http://www.w3.org/2000/svg}"
STEPS = 3
"""With the one that warms up."""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """TRL is left out, as not every checkout has it."""
    directory = tmp_path_factory.mktemp("benchmark")
    write_tiny_model(directory / "model")
    paths = ["--model", str(directory / "model"), "--results", str(directory / "results.json")]
    sizes = ["--examples", "4", "--validation", "2", "--steps", "2", "--rounds", "1"]
    return [*paths, *sizes, "--threads", "1", "--trainers", "reference", "tunery"]


@pytest.fixture(scope="module")
def results(arguments: list[str]) -> dict[str, Any]:
    """Of a comparison of speed, in processes of its own."""
    assert training.main(["speed", *arguments]) == 0
    return load_results(read_options(arguments, None).results)


@pytest.mark.long
def test_every_trainer_reads_the_same_tokens_in_as_many_steps(results: dict[str, Any]) -> None:
    entrants = results["speed"]["entrants"]

    assert list(entrants) == ["reference", "tunery", "tunery-compiled"]
    assert {found["steps"] for found in entrants.values()} == {STEPS - 1}
    assert entrants["reference"]["tokens"] == entrants["tunery"]["tokens"]
    assert all(found["median"] > 0 for found in entrants.values())


@pytest.mark.long
def test_the_report_names_no_place_of_the_machine_it_was_made_on(
    results: dict[str, Any], arguments: list[str], tmp_path: Path
) -> None:
    write_report(results, tmp_path)

    document = (tmp_path / "benchmarks.md").read_text()
    assert "| **Tunery** |" in document
    assert all(argument not in document for argument in arguments if "/" in argument)
    assert (tmp_path / "benchmarks.svg").read_text().count("<rect") == 1 + 3


@pytest.fixture
def bench(arguments: list[str]) -> Any:
    with open_bench(read_options(arguments, None)) as bench:
        yield bench


def test_tunery_trains_to_the_loss_of_the_plain_computation(bench: Bench) -> None:
    with bench.task(validate=True) as task:
        run = tunery.train(task, bench.environment)
        with bench.task(adapter=run.more["adapter"]) as check:
            checked = plain.train(check).more
    with bench.task() as task:
        expected = plain.train(task).more

    assert run.more["valid_loss"] == pytest.approx(checked["valid_loss"], rel=1e-3)
    assert run.more["valid_loss"] == pytest.approx(expected["valid_loss"], rel=1e-2)
    assert expected["valid_loss"] < expected["before"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_matrix_products_alone_go_through_as_many_steps(bench: Bench, dtype: str) -> None:
    with bench.task(variant=dtype) as task:
        run = measure(task)

    assert len(run.ticks) == STEPS
    assert all(speed > 0 for speed in run.more["gflops"].values())


@pytest.mark.parametrize("kind", get_args(DataKind))
def test_the_same_seed_chooses_the_same_examples(kind: DataKind) -> None:
    assert choose_examples(8, seed=1, kind=kind) == choose_examples(8, seed=1, kind=kind)
    assert choose_examples(8, seed=1, kind=kind) != choose_examples(8, seed=2, kind=kind)


def test_the_system_prompt_has_80_words() -> None:
    assert len(SYSTEM_PROMPT.split()) == 80


def test_a_random_model_has_the_shape_of_its_name(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny")

    write_random_model(tmp_path / "model", "0.5B", tokenizer_of=tmp_path / "tiny", layers=1)

    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    layer = 14_912_384  # of Qwen2.5-0.5B
    assert model.num_parameters() == 151_936 * 896 + 896 + layer
    assert model(input_ids=torch.tensor([[1, 2]])).logits.isfinite().all()


def test_the_longest_bar_is_the_fastest() -> None:
    chart = draw_bars([Bar("a & b", 1, 1, 1), Bar("c", 2, 2, 2)], title="t")

    drawn = ET.fromstring(chart).iter(f"{SVG}rect")  # noqa: S314 - we have just written it
    slow, fast = sorted(float(each.get("width", 0)) for each in drawn)[:2]
    assert fast == pytest.approx(2 * slow)


def test_every_label_is_whole_and_inside_the_picture() -> None:
    label = "Tunery, compiled, as for longer jobs"

    picture = ET.fromstring(draw_bars([Bar(label, 402, 382, 421)], title="t"))  # noqa: S314

    (drawn,) = [each for each in picture.iter(f"{SVG}text") if each.text == label]
    groups = [each for each in picture.iter(f"{SVG}g") if drawn in each.iter()]
    shifts = [re.findall(r"translate\((\d+) ", each.get("transform", "")) for each in groups]
    end = float(drawn.get("x", 0)) + sum(int(shift) for found in shifts for shift in found)
    assert end > 0.55 * 12 * len(label), "a letter of 12 pixels is about 0.55 of that wide"
