import json
from pathlib import Path

import pytest

from app.core.base_models import (
    Catalogue,
    CatalogueEntry,
    DirectorySource,
    HubSource,
    digest_of_files,
)
from app.core.manifest import sha256_of
from tests.models import sharded_model_files, tiny_model_files, write_files
from worker.model_store.errors import InstallError, RefusedModelError
from worker.model_store.install import install_model


@pytest.fixture
def source_dir(tmp_path: Path) -> Path:
    return tmp_path / "our-model"


@pytest.fixture
def entry(source_dir: Path) -> CatalogueEntry:
    return build_entry(DirectorySource(kind="directory", path=source_dir))


@pytest.fixture
def catalogue(entry: CatalogueEntry, tmp_path: Path) -> Catalogue:
    return Catalogue([entry], tmp_path / "models")


def build_entry(source: DirectorySource | HubSource) -> CatalogueEntry:
    return CatalogueEntry(
        id="ours",
        name="Ours",
        source=source,
        licence="MIT",
        context_length=128,
        target_modules=("q_proj",),
    )


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_directory_becomes_an_installed_model_with_a_record_of_every_file(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    write_files(source_dir, sharded_model_files())

    installed = install_model(entry, catalogue)

    directory = catalogue.directory("ours")
    assert installed == catalogue.find_installed("ours")
    assert (installed.repo, installed.revision, installed.licence) == ("our-model", None, "MIT")
    assert installed.files == {n: sha256_of(directory / n) for n in sharded_model_files()}
    assert installed.sha256 == digest_of_files(installed.files)
    assert names_in(directory) == installed.files.keys() | {"tunery.json"}


def test_nothing_but_the_model_is_left_beside_it(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    write_files(source_dir, tiny_model_files())

    install_model(entry, catalogue)

    assert names_in(catalogue.directory("ours").parent) == {"ours", ".ours.lock"}


def test_what_does_not_belong_to_a_model_is_not_copied(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    write_files(source_dir, tiny_model_files())
    others = {"modeling.py": b"", "pytorch_model.bin": b"", "optimizer.pt": b"", ".git": b""}
    write_files(source_dir, others)

    installed = install_model(entry, catalogue)

    assert installed.files.keys() == tiny_model_files().keys()


def test_changing_the_source_afterwards_does_not_change_the_model(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    write_files(source_dir, tiny_model_files())
    installed = install_model(entry, catalogue)

    (source_dir / "config.json").write_bytes(b"{}")

    config = catalogue.directory("ours") / "config.json"
    assert sha256_of(config) == installed.files["config.json"]


def test_an_installed_model_is_left_alone(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    write_files(source_dir, tiny_model_files())
    installed = install_model(entry, catalogue)
    (source_dir / "config.json").unlink()

    assert install_model(entry, catalogue) == installed


def test_a_refused_model_leaves_nothing_behind(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    config = json.dumps({"auto_map": {}}).encode()
    write_files(source_dir, tiny_model_files() | {"config.json": config})

    with pytest.raises(RefusedModelError, match="auto_map"):
        install_model(entry, catalogue)

    assert catalogue.find_installed("ours") is None
    assert names_in(catalogue.directory("ours").parent) == {".ours.lock"}


def test_what_an_aborted_installation_left_does_not_get_into_the_next(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    write_files(source_dir, tiny_model_files())
    leftovers = catalogue.directory("ours").with_name(".ours.partial") / "files"
    write_files(leftovers, {"merges.txt": b"of another model"})

    installed = install_model(entry, catalogue)

    assert "merges.txt" not in installed.files


def test_a_link_to_outside_of_the_directory_is_refused(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path, tmp_path: Path
) -> None:
    write_files(source_dir, tiny_model_files())
    write_files(tmp_path / "blobs", {"abc": b"{}"})
    (source_dir / "merges.txt").symlink_to(tmp_path / "blobs" / "abc")

    with pytest.raises(InstallError, match="is a link out of its directory"):
        install_model(entry, catalogue)


def test_a_link_within_the_directory_is_followed(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    files = tiny_model_files()
    write_files(source_dir, files | {"real.safetensors": files["model.safetensors"]})
    (source_dir / "model.safetensors").unlink()
    (source_dir / "model.safetensors").symlink_to("real.safetensors")

    install_model(entry, catalogue)

    weights = catalogue.directory("ours") / "model.safetensors"
    assert not weights.is_symlink()
    assert weights.read_bytes() == files["model.safetensors"]


def test_a_source_that_is_no_directory_is_named(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    with pytest.raises(InstallError, match=f"{source_dir} is not a directory"):
        install_model(entry, catalogue)


def test_a_source_that_holds_a_directory_for_a_file_is_refused(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    write_files(source_dir, tiny_model_files())
    (source_dir / "LICENSE").mkdir()

    with pytest.raises(InstallError, match="LICENSE is not a regular file"):
        install_model(entry, catalogue)


def test_a_directory_that_somebody_put_in_place_is_not_overwritten(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    write_files(source_dir, tiny_model_files())
    write_files(catalogue.directory("ours"), {"precious.txt": b"mine"})

    with pytest.raises(InstallError, match=r"is in the way: .* `tunery models remove ours`"):
        install_model(entry, catalogue)

    assert names_in(catalogue.directory("ours")) == {"precious.txt"}


def test_an_id_that_now_means_another_model_is_not_taken_for_the_installed_one(
    entry: CatalogueEntry, catalogue: Catalogue, source_dir: Path
) -> None:
    write_files(source_dir, tiny_model_files())
    install_model(entry, catalogue)
    other = build_entry(HubSource(kind="hub", repo="us/other"))

    with pytest.raises(InstallError, match="holds our-model at None, and the catalogue names us/o"):
        install_model(other, catalogue)
