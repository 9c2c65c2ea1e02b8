from pathlib import Path

import pytest

from app.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    ManifestError,
    describe_files,
    verify,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory with two files and the manifest that describes them."""
    directory = tmp_path / "step-3"
    directory.mkdir()
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    (directory / "README.md").write_text("# Card\n")
    manifest = Manifest(
        job_id="ftjob-1", attempt=1, step=3, files=describe_files(directory), provenance={}
    )
    (directory / MANIFEST_NAME).write_text(manifest.model_dump_json())
    return directory


def test_a_directory_that_is_as_promised_is_verified(checkpoint: Path) -> None:
    assert verify(checkpoint).files.keys() == {"adapter_model.safetensors", "README.md"}


def test_a_changed_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("# Cart\n")

    with pytest.raises(ManifestError, match=r"step 3: README\.md is not the file"):
        verify(checkpoint)


def test_a_missing_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "README.md").unlink()

    with pytest.raises(ManifestError, match=r"missing or unexpected files: \['README\.md'\]"):
        verify(checkpoint)


def test_an_additional_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "extra.bin").touch()

    with pytest.raises(ManifestError, match=r"missing or unexpected files: \['extra\.bin'\]"):
        verify(checkpoint)


def test_a_link_is_not_a_file(checkpoint: Path) -> None:
    (checkpoint / "passwd").symlink_to("/etc/passwd")

    with pytest.raises(ManifestError, match=r"not regular files: \['passwd'\]"):
        verify(checkpoint)


@pytest.mark.parametrize("content", [None, "", "{}", '{"job_id": 1}'])
def test_a_directory_without_a_readable_manifest_is_not_a_checkpoint(
    checkpoint: Path, content: str | None
) -> None:
    (checkpoint / MANIFEST_NAME).unlink()
    if content is not None:
        (checkpoint / MANIFEST_NAME).write_text(content)

    with pytest.raises(ManifestError, match=r"step-3: no readable manifest\.json"):
        verify(checkpoint)
