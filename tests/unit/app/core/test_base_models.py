from collections import Counter
from pathlib import Path

import pytest

from app.core.base_models import (
    DEFAULT_MODEL_ID,
    CatalogueError,
    DirectorySource,
    HubSource,
    InstalledModel,
    WheelSource,
    digest_of_files,
    load_catalogue,
)

OWN_ENTRY = """
[[model]]
id = "{id}"
name = "Ours"
source.kind = "hub"
source.repo = "us/ours"
licence = "MIT"
context_length = 64
target_modules = ["q_proj"]
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path


def write_own(data_dir: Path, text: str) -> None:
    (data_dir / "base_models.toml").write_text(text, "utf-8")


def test_every_entry_of_the_package_loads_under_an_id_of_its_own(data_dir: Path) -> None:
    entries = load_catalogue(data_dir).entries

    assert len(entries) >= 15
    assert max(Counter(entry.id for entry in entries).values()) == 1


def test_the_default_model_needs_no_hub(data_dir: Path) -> None:
    entry = load_catalogue(data_dir).find(DEFAULT_MODEL_ID)

    assert entry is not None
    assert isinstance(entry.source, WheelSource)
    assert entry.repo == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    "repo",
    [
        "Qwen/Qwen2-1.5B",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Qwen/Qwen2.5-3B-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    ],
)
def test_the_models_that_users_ask_for_first_are_known_by_their_repository(
    repo: str, data_dir: Path
) -> None:
    entry = load_catalogue(data_dir).find(repo)

    assert entry is not None
    assert {"q_proj", "v_proj"} <= set(entry.target_modules)


def test_only_the_three_billion_qwen2_5_is_not_open_source(data_dir: Path) -> None:
    qwen = [e for e in load_catalogue(data_dir).entries if e.repo.startswith("Qwen/")]

    closed = {entry.id: entry.licence for entry in qwen if entry.licence != "Apache-2.0"}

    assert closed == {"qwen2.5-3b-instruct": "Qwen Research License"}


def test_an_operator_adds_an_entry(data_dir: Path) -> None:
    write_own(data_dir, OWN_ENTRY.format(id="ours"))

    catalogue = load_catalogue(data_dir)

    ours = catalogue.find("us/ours")
    assert ours is not None
    assert ours.source == HubSource(kind="hub", repo="us/ours", revision=None)
    assert catalogue.directory("ours") == data_dir / "models" / "ours"
    assert catalogue.find(DEFAULT_MODEL_ID) is not None


def test_an_operator_replaces_an_entry(data_dir: Path) -> None:
    write_own(data_dir, OWN_ENTRY.format(id="qwen2-1.5b"))

    catalogue = load_catalogue(data_dir)

    replaced = catalogue.find("qwen2-1.5b")
    assert replaced is not None
    assert replaced.repo == "us/ours"
    assert catalogue.find("Qwen/Qwen2-1.5B") is None


def test_no_model_of_the_package_has_an_alias(data_dir: Path) -> None:
    assert not [entry for entry in load_catalogue(data_dir).entries if entry.aliases]


def test_an_operator_gives_a_model_further_names(data_dir: Path) -> None:
    known = load_catalogue(data_dir).find(DEFAULT_MODEL_ID)
    table = f"[[model]]\nid = '{DEFAULT_MODEL_ID}'\naliases = ['gpt-4o-mini', 'openai/gpt-4o']\n"
    write_own(data_dir, table)

    catalogue = load_catalogue(data_dir)

    assert known is not None
    found = [catalogue.find(name) for name in ("gpt-4o-mini", "openai/gpt-4o", DEFAULT_MODEL_ID)]
    assert found == 3 * [known.model_copy(update={"aliases": ("gpt-4o-mini", "openai/gpt-4o")})]


def test_a_model_that_replaces_another_has_only_its_own_names(data_dir: Path) -> None:
    write_own(data_dir, OWN_ENTRY.format(id="qwen2-1.5b") + "aliases = ['mine', 'us/ours']\n")

    entry = load_catalogue(data_dir).find("mine")

    assert entry is not None
    assert (entry.id, entry.repo) == ("qwen2-1.5b", "us/ours")


def test_a_model_from_a_directory_is_named_after_it(data_dir: Path) -> None:
    text = OWN_ENTRY.format(id="ours").replace('source.kind = "hub"', 'source.kind = "directory"')
    write_own(data_dir, text.replace('source.repo = "us/ours"', 'source.path = "/srv/our-model"'))

    entry = load_catalogue(data_dir).find("ours")

    assert entry is not None
    assert entry.source == DirectorySource(kind="directory", path=Path("/srv/our-model"))
    assert entry.repo == "our-model"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("[[model]", "is not TOML", id="not-toml"),
        pytest.param("[[models]]\nid = 'a'", "[[model]] entries", id="other-table"),
        pytest.param("model = 3", "[[model]] entries", id="no-list"),
        pytest.param("[[model]]\nname = 'a'", "model number 1: id: Field required", id="no-id"),
        pytest.param(
            OWN_ENTRY.format(id="ours") + "lora = 3\n",
            "model 'ours': lora: Extra",
            id="unknown-key",
        ),
        pytest.param(
            OWN_ENTRY.format(id="ours").replace("us/ours", "ours"),
            "model 'ours': source.hub.repo: String should match",
            id="no-organization",
        ),
        pytest.param(
            OWN_ENTRY.format(id="ours") + 'source.revision = "main"\n',
            "model 'ours': source.hub.revision: String should match",
            id="branch-for-a-commit",
        ),
        pytest.param(
            OWN_ENTRY.format(id="../up"), "model '../up': id: String should match", id="path-as-id"
        ),
        pytest.param(
            OWN_ENTRY.format(id="ours") + OWN_ENTRY.format(id="ours"),
            "the id 'ours' is given twice",
            id="twice",
        ),
        pytest.param(
            OWN_ENTRY.format(id="ours") + "aliases = ['qwen3-0.6b']\n",
            "model 'ours': the alias 'qwen3-0.6b' is the id of another model",
            id="alias-is-an-id",
        ),
        pytest.param(
            OWN_ENTRY.format(id="ours") + "aliases = ['Qwen/Qwen3-0.6B']\n",
            "model 'ours': the alias 'Qwen/Qwen3-0.6B' is the repository of the model "
            "'qwen3-0.6b'.",
            id="alias-is-a-repository",
        ),
        pytest.param(
            OWN_ENTRY.format(id="ours")
            + "aliases = ['x']\n[[model]]\nid = 'qwen3-0.6b'\naliases = ['x']\n",
            "model 'qwen3-0.6b': the alias 'x' is also an alias of the model 'ours'.",
            id="alias-is-an-alias",
        ),
        pytest.param(
            OWN_ENTRY.format(id="ours") + "aliases = ['ft:x']\n",
            "model 'ours': aliases.0: String should match",
            id="alias-like-a-tuned-model",
        ),
        pytest.param(
            "[[model]]\nid = 'unknown'\naliases = ['x']\n",
            "model 'unknown': name: Field required",
            id="alias-of-nothing",
        ),
        pytest.param(
            OWN_ENTRY.format(id="ours")
            .replace('"hub"', '"directory"')
            .replace('source.repo = "us/ours"', 'source.path = "model"'),
            "'model' is not an absolute path",
            id="relative-path",
        ),
    ],
)
def test_a_mistake_is_reported_with_its_file_and_its_entry(
    text: str, expected: str, data_dir: Path
) -> None:
    write_own(data_dir, text)

    with pytest.raises(CatalogueError) as caught:
        load_catalogue(data_dir)

    assert str(data_dir / "base_models.toml") in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("record", [None, b"", b'{"id": "qwen2-1.5b"}'])
def test_a_directory_without_a_whole_record_is_not_an_installed_model(
    record: bytes | None, data_dir: Path
) -> None:
    catalogue = load_catalogue(data_dir)
    directory = catalogue.directory("qwen2-1.5b")
    directory.mkdir(parents=True)
    if record is not None:
        (directory / "tunery.json").write_bytes(record)

    assert catalogue.find_installed("qwen2-1.5b") is None


def test_an_installed_model_is_found_by_its_record(data_dir: Path) -> None:
    catalogue = load_catalogue(data_dir)
    files = {"config.json": "ab" * 32}
    record = InstalledModel(
        id="qwen2-1.5b",
        repo="Qwen/Qwen2-1.5B",
        revision=None,
        licence="Apache-2.0",
        files=files,
        sha256=digest_of_files(files),
        installed_at=1_700_000_000,
    )
    catalogue.directory("qwen2-1.5b").mkdir(parents=True)
    path = catalogue.directory("qwen2-1.5b") / "tunery.json"
    path.write_text(record.model_dump_json(), "utf-8")

    assert catalogue.find_installed("qwen2-1.5b") == record


def test_the_digest_of_a_set_of_files_depends_on_names_and_contents_and_not_on_order() -> None:
    digest = digest_of_files({"a": "11", "b": "22"})

    assert digest == digest_of_files({"b": "22", "a": "11"})
    assert digest != digest_of_files({"a": "22", "b": "11"})


def test_the_documented_catalogue_is_the_one_of_the_package(data_dir: Path) -> None:
    page = Path(__file__).parents[4] / "docs" / "base-models.md"
    rows = [line.split(" | ") for line in page.read_text("utf-8").splitlines() if " | " in line]
    documented = [
        (row[0].split("`")[1], row[1], row[2], row[3]) for row in rows if row[0].startswith("| `")
    ]

    assert documented == [
        (e.id, e.licence, f"{e.context_length:,}", "yes" if e.supports_tools else "no")
        for e in load_catalogue(data_dir).entries
    ]
