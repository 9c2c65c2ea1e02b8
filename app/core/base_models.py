"""Catalogue of base models: which exist, where they come from, and their limits.

The defaults are in `base_models.toml` beside this file. An operator adds or replaces entries in
`DATA_DIR/base_models.toml`. A base model is installed, and can be tuned, once `DATA_DIR/models/ID/`
holds its files and a `tunery.json` that records them.
"""

import hashlib
import itertools
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from app.core.errors import OperatorError
from app.core.job.frozen import Frozen
from app.core.manifest import sha256_of

DEFAULT_MODEL_ID = "smollm2-135m-instruct"
"""Embedded model: it is small enough for any machine and needs no model hub."""

CATALOGUE_NAME = "base_models.toml"
RECORD_NAME = "tunery.json"
MODELS_NAME = "models"
"""Directory of all installed models, in the data directory."""

BYTES_PER_PARAMETER = 2
"""Size of a parameter in the files of nearly every model on a hub."""

Repo = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class HubSource(Frozen):
    """A repository on a model hub, at one commit."""

    kind: Literal["hub"]
    repo: Repo
    revision: Commit | None = None
    """Commit to fetch. Without one, the first fetch resolves the default branch and records the
    commit, which later fetches use."""


class DirectorySource(Frozen):
    """A directory of the operator, in the layout of a hub repository."""

    kind: Literal["directory"]
    path: Path
    """Absolute path, so that it means the same to every process."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if not path.is_absolute():
            raise ValueError(f"'{path}' is not an absolute path; begin it with /")
        return path


class WheelSource(Frozen):
    """A GGUF file inside a package of the Python package index."""

    kind: Literal["wheel"]
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")
    member: str = Field(pattern=r"\.gguf$")
    """Path of the GGUF file inside the wheel."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Checksum of the GGUF file."""
    repo: Repo
    """Hub repository that the GGUF file was made from."""


class CatalogueEntry(Frozen):
    """One base model."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    name: str
    """Name for people."""
    aliases: tuple[Alias, ...] = ()
    """Additional names that a job can give as its `model`, such as one of OpenAI's."""
    source: Annotated[HubSource | DirectorySource | WheelSource, Field(discriminator="kind")]
    licence: str
    """SPDX identifier, or the licence's own name."""
    context_length: int = Field(ge=16)
    """Maximum length of a sequence, in tokens."""
    target_modules: tuple[str, ...] = Field(min_length=1)
    """Linear layers that LoRA may target."""
    max_lora_rank: int = Field(default=256, ge=1, le=256)
    supports_tools: bool = False
    """Whether the chat template renders tools and tool calls."""

    @property
    def repo(self) -> str:
        """Base model that an adapter's configuration names."""
        if isinstance(self.source, DirectorySource):
            return self.source.path.name
        return self.source.repo


class InstalledModel(Frozen):
    """Record of an installed model, in its `tunery.json`."""

    id: str
    repo: str
    revision: str | None
    """Hub commit of the files."""
    licence: str
    files: dict[str, str]
    """Checksum (sha256) of every file, by name."""
    sha256: str
    """Checksum over the sorted `name sha256` lines of `files`."""
    installed_at: int
    """Unix time in seconds."""


class Catalogue:
    """Every known base model, by id."""

    def __init__(self, entries: Sequence[CatalogueEntry], models_dir: Path) -> None:
        self._entries = {entry.id: entry for entry in entries}
        self._models_dir = models_dir

    @property
    def entries(self) -> list[CatalogueEntry]:
        return list(self._entries.values())

    def find(self, name: str) -> CatalogueEntry | None:
        """Find the entry with this id, alias or hub repository."""
        named = next((entry for entry in self.entries if name in (entry.id, *entry.aliases)), None)
        by_repo = [entry for entry in self.entries if entry.repo == name]
        # The repository itself comes before a model that was converted from it.
        by_repo.sort(key=lambda entry: not isinstance(entry.source, HubSource))
        return named or next(iter(by_repo), None)

    def resolve(self, name: str) -> str:
        """Id of the base model of this name. A machine may lack the entry of one from the store."""
        return name if (entry := self.find(name)) is None else entry.id

    def directory(self, model_id: str) -> Path:
        """Directory of the model's files. It exists once the model is installed."""
        return self._models_dir / model_id

    def version_directory(self, model_id: str, sha256: str) -> Path:
        """Directory of a version that was fetched while another one was in `directory`."""
        return self._models_dir / f"{model_id}@{sha256}"  # no id has an @

    def hidden_directory(self, model_id: str, sha256: str, kind: str) -> Path:
        """Directory of a version while it is fetched, or of its outline, which has no weights."""
        return self._models_dir / f".{model_id}@{sha256}.{kind}"

    def find_installed(self, model_id: str) -> InstalledModel | None:
        """Read the record of an installed model. None if it is not completely installed."""
        return read_record(self.directory(model_id))

    def find_version(
        self, model_id: str, sha256: str | None, *, needs_weights: bool = True
    ) -> tuple[InstalledModel, Path] | None:
        """Find an installed model with these files, and its directory. None means: any files.

        Unless it `needs_weights`, an outline does as well, whose weights have no bytes.
        """
        directories = [self.directory(model_id)]
        if sha256 is not None:
            directories.append(self.version_directory(model_id, sha256))
            if not needs_weights:
                directories.append(self.hidden_directory(model_id, sha256, "outline"))
        for directory in directories:
            installed = read_record(directory)
            if installed is not None and sha256 in (None, installed.sha256):
                return installed, directory
        return None

    def list_installed(self) -> list[tuple[CatalogueEntry, InstalledModel]]:
        """The installed models, each with its entry."""
        pairs = ((entry, self.find_installed(entry.id)) for entry in self.entries)
        return [(entry, installed) for entry, installed in pairs if installed is not None]


class CatalogueError(OperatorError):
    """The operator's catalogue is invalid. The message says where and why."""


_file_adapter = TypeAdapter(dict[Literal["model"], list[dict[str, Any]]])


def load_catalogue(data_dir: Path) -> Catalogue:
    """Read the entries of the package and those of `data_dir/base_models.toml`.

    Raises:
        CatalogueError: a file is not TOML, an entry is invalid, or an alias names two models.
    """
    entries = _read_entries(Path(__file__).with_name(CATALOGUE_NAME))
    own = data_dir / CATALOGUE_NAME
    if own.exists():
        entries += _read_entries(own, {entry.id: entry for entry in entries})
    catalogue = Catalogue(entries, data_dir / MODELS_NAME)
    _check_aliases(catalogue, own)
    return catalogue


def _check_aliases(catalogue: Catalogue, path: Path) -> None:
    for entry, other in itertools.permutations(catalogue.entries, 2):
        for alias in entry.aliases:
            if alias == other.id:
                what = "the id of another model"
            elif alias in other.aliases:
                what = f"also an alias of the model {other.id!r}"
            elif alias == other.repo:
                what = f"the repository of the model {other.id!r}"
            else:
                continue
            raise CatalogueError(
                f"{path}: model {entry.id!r}: the alias {alias!r} is {what}. Choose another one."
            )


def _read_entries(
    path: Path, known: Mapping[str, CatalogueEntry] = MappingProxyType({})
) -> list[CatalogueEntry]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"{path} is not TOML: {error}") from error
    try:
        tables = _file_adapter.validate_python(content).get("model", [])
    except ValidationError as error:
        raise CatalogueError(
            f"{path} may contain only [[model]] entries. Remove everything else."
        ) from error
    tables = [_with_known_fields(table, known) for table in tables]
    entries = [_parse_entry(table, path, number) for number, table in enumerate(tables, start=1)]
    ids = [entry.id for entry in entries]
    repeated = next((model_id for model_id in ids if ids.count(model_id) > 1), None)
    if repeated is not None:
        raise CatalogueError(f"{path}: the id {repeated!r} is given twice. Merge the entries.")
    return entries


def _with_known_fields(
    table: dict[str, Any], known: Mapping[str, CatalogueEntry]
) -> dict[str, Any]:
    """Add a known model's fields to a table that has only its id and aliases."""
    entry = known.get(str(table.get("id")))
    is_only_aliases = table.keys() == {"id", "aliases"}
    return entry.model_dump() | table if entry and is_only_aliases else table


def _parse_entry(table: dict[str, Any], path: Path, number: int) -> CatalogueEntry:
    try:
        return CatalogueEntry.model_validate(table)
    except ValidationError as error:
        name = repr(table["id"]) if "id" in table else f"number {number}"
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CatalogueError(f"{path}: model {name}: {field}: {first['msg']}") from error


def is_weights(name: str) -> bool:
    """Whether the file of this name has weights."""
    return name.endswith(".safetensors")


def read_record(directory: Path) -> InstalledModel | None:
    """Read the record of the installed model in `directory`. None if there is none."""
    try:
        return InstalledModel.model_validate_json((directory / RECORD_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def digest_of_files(files: dict[str, str]) -> str:
    """Combine the sha256 of every file into one."""
    lines = "".join(f"{name} {sha256}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def find_change(
    directory: Path, installed: InstalledModel, *, is_compared: Callable[[str], bool]
) -> str | None:
    """What has changed in a directory since its model was installed. None if nothing has.

    Args:
        is_compared: whether the bytes of a file with this name are read and compared.
    """
    names = {path.name for path in directory.iterdir()} - {RECORD_NAME}
    if names != installed.files.keys():
        return f"{min(names ^ installed.files.keys())} was added or removed"
    for name, sha256 in installed.files.items():
        path = directory / name
        if path.is_symlink() or not path.is_file():
            return f"{name} was replaced by a link or a directory"
        if is_compared(name) and sha256_of(path) != sha256:
            return f"{name} was changed"
    return None
