"""No process that runs the code of others learns the keys of the blob store."""

import pytest

from app.core.dataset.tokenizing import processes
from worker.launch.supervision import child_environment
from worker.trackers import process

NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL")


def test_children_are_given_no_variable_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training children, forked ones and the sampler's have the same environment."""
    for name in NAMES:
        monkeypatch.setenv(name, "sesame")

    given = child_environment()

    assert "PATH" in given
    assert "sesame" not in given.values()


@pytest.mark.parametrize("passed_on", [processes._PASSED_ON, process._PASSED_ON])
def test_tokenizers_and_trackers_are_given_a_list_without_them(passed_on: object) -> None:
    assert passed_on
    assert not set(NAMES) & set(passed_on)  # pyright: ignore[reportArgumentType]
