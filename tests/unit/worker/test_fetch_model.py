from pathlib import Path

import pytest

from tests.models import tiny_model_files, write_files
from worker.fetch_model import main


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory whose catalogue has the model `ours`, from a directory that exists."""
    source = write_files(tmp_path / "source", tiny_model_files())
    data_dir = tmp_path / "data"
    own = f"""
        [[model]]
        id = "ours"
        name = "Our model"
        source.kind = "directory"
        source.path = "{source}"
        licence = "Our Licence"
        context_length = 4242
        target_modules = ["q_proj"]
    """
    write_files(data_dir, {"base_models.toml": own.encode()})
    monkeypatch.setenv("TUNERY_DATA_DIR", str(data_dir))
    return data_dir


def listed(model_id: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return next(line.split() for line in lines if line.startswith(f"{model_id} "))


def test_the_list_shows_licence_and_context_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed("ours", capsys) == ["ours", "Our", "model", "Our", "Licence", "4242", "no"]
    assert listed("qwen2-1.5b", capsys)[-3:] == ["Apache-2.0", "32768", "no"]


def test_a_fetched_model_is_listed_as_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ours"]) == 0

    assert listed("ours", capsys)[-1] == "yes"


def test_fetching_twice_says_that_it_is_there(caplog: pytest.LogCaptureFixture) -> None:
    main(["ours"])
    caplog.clear()

    assert main(["ours"]) == 0

    assert "ours is already installed" in caplog.text


def test_an_unknown_model_is_answered_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["qwen9"]) == 1

    message = capsys.readouterr().err
    assert "no base model 'qwen9'" in message
    assert "qwen2-1.5b" in message
    assert "ours" in message


def test_one_failure_does_not_keep_the_other_models_from_being_fetched(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["qwen9", "ours"]) == 1

    assert (data_dir / "models" / "ours" / "tunery.json").exists()


def test_a_failure_says_which_model_and_why(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data_dir.parent / "source" / "tokenizer.json").unlink()

    assert main(["ours"]) == 1

    assert "ours was not installed. It has no tokenizer" in capsys.readouterr().err


def test_a_broken_catalogue_is_reported_without_a_traceback(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data_dir / "base_models.toml").write_text("[[model", "utf-8")

    assert main(["ours"]) == 1

    assert "is not TOML" in capsys.readouterr().err


def test_naming_no_model_is_an_error_that_shows_the_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])

    assert caught.value.code == 2
    assert "--list" in capsys.readouterr().err
