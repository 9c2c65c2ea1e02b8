"""What a test does when a program that it needs is not on the machine."""

import pytest

from tests.programs import require_programs

NEEDED = "python3", "no-such-program"


def test_the_test_is_skipped_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match="apt-get install no-such-program"):
        require_programs(*NEEDED)


def test_the_test_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match="apt-get install no-such-program"):
        require_programs(*NEEDED)
