"""The path from a model hub to an installed model, with a stand-in for the hub."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.base_models import Catalogue, CatalogueEntry, HubSource, InstalledModel
from tests.hub_stand_in import HubStandIn, Interruption
from tests.models import sharded_model_files, tiny_model_files, write_files
from worker.model_store.errors import InstallError
from worker.model_store.install import install_model

REPO = "us/tiny"
FIRST = "1" * 40
SECOND = "2" * 40
WEIGHTS = "model.safetensors"
MEGABYTE = 1024 * 1024
LARGE = 25 * MEGABYTE
"""Bytes of weights that huggingface_hub writes in three pieces, the first two of 10 MB."""


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn().running() as hub:
        yield hub


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue([build_entry()], tmp_path / "models")


@pytest.fixture(autouse=True)
def _without_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The name that the library gave the path of a saved token when it was imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))


def build_entry(*, revision: str | None = None) -> CatalogueEntry:
    return CatalogueEntry(
        id="tiny",
        name="Tiny",
        source=HubSource(kind="hub", repo=REPO, revision=revision),
        licence="MIT",
        context_length=128,
        target_modules=("q_proj",),
    )


def install(
    hub: HubStandIn, catalogue: Catalogue, *, revision: str | None = None
) -> InstalledModel:
    return install_model(build_entry(revision=revision), catalogue, endpoint=hub.url)


def break_off(hub: HubStandIn, catalogue: Catalogue) -> None:
    """Install until the hub goes down in the middle of the weights; then it is there again."""
    hub.interruption = Interruption(after_bytes=12 * MEGABYTE)
    hub.interruption.may_go_on.set()
    with pytest.raises(InstallError, match="status 503"):
        install(hub, catalogue)
    hub.interruption, hub.is_down = None, False


def ranges_asked(hub: HubStandIn) -> list[str | None]:
    return [request.range for request in hub.requests if request.path.startswith("/large/")]


def test_a_model_is_installed_whole_with_the_commit_it_is_from(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    hub.add(REPO, tiny_model_files(), FIRST)

    installed = install(hub, catalogue)

    assert (installed.repo, installed.revision) == (REPO, FIRST)
    assert installed.files.keys() == tiny_model_files().keys()
    for name, content in tiny_model_files().items():
        assert (catalogue.directory("tiny") / name).read_bytes() == content
    assert {path.name for path in catalogue.directory("tiny").parent.iterdir()} == {
        "tiny",
        ".tiny.lock",
    }


def test_weights_in_several_files_are_fetched_by_their_index(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    hub.add(REPO, sharded_model_files() | {"consolidated.safetensors": b"the same again"}, FIRST)

    installed = install(hub, catalogue)

    assert installed.files.keys() == sharded_model_files().keys()


def test_a_pinned_commit_is_fetched_wherever_the_default_branch_is(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    hub.add(REPO, tiny_model_files() | {"README.md": b"old"}, FIRST)
    hub.add(REPO, tiny_model_files() | {"README.md": b"new"}, SECOND)

    installed = install(hub, catalogue, revision=FIRST)

    assert installed.revision == FIRST
    assert (catalogue.directory("tiny") / "README.md").read_bytes() == b"old"


def test_the_default_branch_is_resolved_once_and_then_stays(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    hub.add(REPO, tiny_model_files(), FIRST)
    installed = install(hub, catalogue)
    hub.add(REPO, tiny_model_files() | {"README.md": b"new"}, SECOND)
    hub.requests.clear()

    assert install(hub, catalogue) == installed

    assert hub.requests == []


def test_pinning_another_commit_than_the_installed_one_is_refused(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    hub.add(REPO, tiny_model_files(), FIRST)
    install(hub, catalogue)

    with pytest.raises(InstallError, match=f"holds {REPO} at {FIRST}, .* {REPO} at {SECOND}"):
        install(hub, catalogue, revision=SECOND)


def test_code_and_pickles_are_never_asked_for(hub: HubStandIn, catalogue: Catalogue) -> None:
    unwanted = {
        "modeling_tiny.py": b"",
        "pytorch_model.bin": b"",
        "training_args.bin": b"",
        "optimizer.pt": b"",
        "original/consolidated.00.pth": b"",
        "onnx/model.onnx": b"",
        ".gitattributes": b"",
    }
    hub.add(REPO, tiny_model_files() | unwanted, FIRST)

    install(hub, catalogue)

    assert sorted(hub.names_fetched()) == sorted(tiny_model_files())


def test_a_download_that_broke_off_goes_on_where_it_stopped(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    hub.add(REPO, tiny_model_files(weight_bytes=LARGE), FIRST)
    break_off(hub, catalogue)
    assert catalogue.find_installed("tiny") is None
    hub.requests.clear()

    install(hub, catalogue)

    assert hub.names_fetched() == [WEIGHTS]
    assert ranges_asked(hub) == [f"bytes={10 * MEGABYTE}-"]
    weights = (catalogue.directory("tiny") / WEIGHTS).read_bytes()
    assert weights == tiny_model_files(weight_bytes=LARGE)[WEIGHTS]


def test_a_download_that_broke_off_stays_at_its_commit(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    hub.add(REPO, tiny_model_files(weight_bytes=LARGE), FIRST)
    break_off(hub, catalogue)
    hub.add(REPO, tiny_model_files() | {"README.md": b"new"}, SECOND)

    assert install(hub, catalogue).revision == FIRST


def test_files_of_two_commits_are_never_mixed(hub: HubStandIn, catalogue: Catalogue) -> None:
    old = tiny_model_files(weight_bytes=LARGE) | {"merges.txt": b"of the old commit only"}
    hub.add(REPO, old, FIRST)
    break_off(hub, catalogue)
    hub.add(REPO, tiny_model_files(), SECOND)

    installed = install(hub, catalogue, revision=SECOND)

    assert installed.revision == SECOND
    assert installed.files.keys() == tiny_model_files().keys()
    weights = (catalogue.directory("tiny") / WEIGHTS).read_bytes()
    assert weights == tiny_model_files()[WEIGHTS]


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1] + b"!", id="changed"),
        pytest.param(lambda content: content[:-1], id="shorter"),
        pytest.param(lambda content: content + b"!", id="longer"),
    ],
)
def test_a_file_that_is_not_what_the_hub_lists_is_not_installed(
    name: str, damage: Callable[[bytes], bytes], hub: HubStandIn, catalogue: Catalogue
) -> None:
    hub.add(REPO, tiny_model_files(), FIRST)
    hub.served_instead[name] = damage(tiny_model_files()[name])
    with pytest.raises(InstallError, match=f"{name} is not the file that the hub lists"):
        install(hub, catalogue)
    assert catalogue.find_installed("tiny") is None
    hub.served_instead.clear()

    assert install(hub, catalogue).revision == FIRST


def test_a_damaged_remainder_is_fetched_afresh(hub: HubStandIn, catalogue: Catalogue) -> None:
    hub.add(REPO, tiny_model_files(), FIRST)
    job_directory = catalogue.directory("tiny").with_name(".tiny.partial")
    write_files(
        job_directory, {"commit": f"{REPO} {FIRST}".encode(), f"{WEIGHTS}.incomplete": bytes(100)}
    )

    install(hub, catalogue)

    assert ranges_asked(hub) == ["bytes=100-", None]


def test_a_configuration_that_can_have_code_run_is_refused_before_the_weights_come(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    config = json.dumps({"auto_map": {"AutoModel": "modeling_tiny.Tiny"}}).encode()
    hub.add(REPO, tiny_model_files() | {"config.json": config}, FIRST)

    with pytest.raises(InstallError, match=r"config\.json has the key 'auto_map'"):
        install(hub, catalogue)

    assert WEIGHTS not in hub.names_fetched()
    assert not catalogue.directory("tiny").with_name(".tiny.partial").exists()


def test_an_index_that_points_out_of_the_directory_is_refused(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    index = json.dumps({"weight_map": {"weight": "../../etc/model.safetensors"}}).encode()
    files = sharded_model_files() | {"model.safetensors.index.json": index}
    hub.add(REPO, files, FIRST)

    with pytest.raises(InstallError, match="not a safetensors file beside it"):
        install(hub, catalogue)


def test_a_repository_that_is_not_there_is_named(hub: HubStandIn, catalogue: Catalogue) -> None:
    with pytest.raises(InstallError, match=f"has no model {REPO}, or it is private"):
        install(hub, catalogue)


def test_a_commit_that_is_not_there_is_named(hub: HubStandIn, catalogue: Catalogue) -> None:
    hub.add(REPO, tiny_model_files(), FIRST)

    with pytest.raises(InstallError, match="Correct `revision` in"):
        install(hub, catalogue, revision=SECOND)


def test_a_gated_repository_says_where_to_accept_its_licence(
    hub: HubStandIn, catalogue: Catalogue
) -> None:
    hub.add(REPO, tiny_model_files(), FIRST).is_gated = True

    with pytest.raises(InstallError, match=f"is gated: accept its licence at {hub.url}/{REPO}"):
        install(hub, catalogue)


def test_a_token_opens_a_gated_repository_and_stays_at_the_hub(
    hub: HubStandIn, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, tiny_model_files(), FIRST).is_gated = True
    monkeypatch.setenv("HF_TOKEN", "may-read")

    install(hub, catalogue)

    from_elsewhere = [r.authorization for r in hub.requests if r.path.startswith("/large/")]
    assert from_elsewhere == [None]


def test_a_hub_that_nobody_answers_for_is_named(catalogue: Catalogue) -> None:
    with HubStandIn().running() as gone:
        pass

    with pytest.raises(InstallError, match=f"{gone.url} cannot be reached"):
        install(gone, catalogue)


def test_a_model_larger_than_the_disk_is_not_begun(hub: HubStandIn, catalogue: Catalogue) -> None:
    class Sparse(bytes):
        def __len__(self) -> int:
            return 10**18

    hub.add(REPO, tiny_model_files() | {WEIGHTS: Sparse(b"")}, FIRST)

    with pytest.raises(InstallError, match=r"1000000000\.\d GB more on the disk"):
        install(hub, catalogue)

    assert WEIGHTS not in hub.names_fetched()
