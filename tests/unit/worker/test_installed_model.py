"""What a job finds out about a base model that was changed on the disk after its installation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.base_models import Catalogue, CatalogueEntry, DirectorySource, InstalledModel
from app.core.db.session import Database
from app.core.manifest import sha256_of
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import add_file, add_job, claim
from tests.models import tiny_model_files, write_files
from worker.attempt.endings import end_of_error
from worker.job_directory import JobDirectory, JobInputs
from worker.model_store.errors import RefusedModelError
from worker.model_store.install import install_model
from worker.model_store.installed import check_installed


@pytest.fixture
def installed(tmp_path: Path) -> tuple[Path, InstalledModel]:
    """The directory of a model, and its record."""
    entry = CatalogueEntry(
        id="ours",
        name="Ours",
        source=DirectorySource(kind="directory", path=tmp_path / "source"),
        licence="MIT",
        context_length=128,
        target_modules=("q_proj",),
    )
    write_files(tmp_path / "source", tiny_model_files())
    catalogue = Catalogue([entry], tmp_path / "models")
    return catalogue.directory("ours"), install_model(entry, catalogue)


def replace_by_link(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").symlink_to("config.json")


def test_a_model_as_it_was_installed_may_be_used(installed: tuple[Path, InstalledModel]) -> None:
    check_installed(*installed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: (path / "modeling.py").touch(), r"modeling\.py was added"),
        (lambda path: (path / "README.md").unlink(), r"README\.md was added or removed"),
        (lambda path: (path / "config.json").write_text("{ }"), r"config\.json was changed"),
        (replace_by_link, r"tokenizer\.json was replaced by a link"),
    ],
    ids=["added", "removed", "changed", "link"],
)
def test_a_model_that_was_changed_is_refused(
    change: Callable[[Path], object], reason: str, installed: tuple[Path, InstalledModel]
) -> None:
    change(installed[0])

    with pytest.raises(RefusedModelError, match=reason):
        check_installed(*installed)


def test_a_configuration_that_an_older_version_let_in_is_refused(
    installed: tuple[Path, InstalledModel],
) -> None:
    directory, record = installed
    (directory / "config.json").write_text('{"auto_map": {}}')
    files = record.files | {"config.json": sha256_of(directory / "config.json")}

    with pytest.raises(RefusedModelError, match=r"config\.json has the key 'auto_map'"):
        check_installed(directory, record.model_copy(update={"files": files}))


@pytest.mark.only_sqlite
def test_a_job_does_not_start_on_it(
    settings: Settings, database: Database, store: LocalBlobStore, catalogue: Catalogue
) -> None:
    file = add_file(database, store)
    add_job(database, training_file_id=file.id)
    lease = claim(database)
    (settings.data_dir / "models/tiny/modeling.py").touch()

    with pytest.raises(RefusedModelError) as refused:
        JobDirectory(settings.work_dir, lease).fill(JobInputs(file), store, catalogue, settings)

    end = end_of_error(refused.value, lease)
    assert "base_model_refused" in repr(end)
    assert "modeling.py was added" in repr(end)
