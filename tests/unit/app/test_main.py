import pytest

from app.__main__ import main


def test_an_argument_that_is_not_known_is_answered_with_those_that_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))  # away from the `.env` that a developer may have

    assert main(["serve"]) == 2
    assert "`python -m app openapi`" in capsys.readouterr().err
