import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.job.scores.card import REPORT_CARD_NAME
from app.core.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest, ManifestFile, describe_files
from app.core.signing.keys import SigningKeys
from app.core.signing.signatures import PublicKey
from app.maintenance.verify_adapter import NoAdapterError, NotGenuineError, verify_adapter
from tests.programs import require_programs

WEIGHTS_NAME = "adapter_model.safetensors"


@pytest.fixture
def keys(tmp_path: Path) -> SigningKeys:
    return SigningKeys(tmp_path / "signing")


@pytest.fixture
def trusted(keys: SigningKeys) -> list[PublicKey]:
    """What the user noted down before."""
    return [keys.ensure()]


@pytest.fixture
def adapter(tmp_path: Path, keys: SigningKeys) -> Path:
    """A downloaded and unpacked adapter."""
    directory = tmp_path / "adapter"
    directory.mkdir()
    (directory / WEIGHTS_NAME).write_bytes(bytes(range(256)) * 20)
    (directory / "README.md").write_text("# Card\n")
    sign(directory, keys)
    return directory


def sign(directory: Path, keys: SigningKeys, **changes: ManifestFile) -> None:
    files = describe_files(directory) | changes
    manifest = Manifest(job_id="ftjob-1", attempt=1, step=3, files=files, provenance={})
    content = manifest.model_dump_json().encode()
    (directory / MANIFEST_NAME).write_bytes(content)
    (directory / SIGNATURE_NAME).write_bytes(keys.sign(content))


def pack(directory: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    archive = directory.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", compression) as target:
        for path in sorted(directory.iterdir()):
            target.write(path, path.name)
    return archive


def in_place(directory: Path) -> Path:
    return directory


each_form = pytest.mark.parametrize("form", [in_place, pack], ids=["directory", "archive"])
Form = Callable[[Path], Path]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@each_form
def test_an_adapter_as_it_was_signed_is_verified(
    form: Form, adapter: Path, trusted: list[PublicKey]
) -> None:
    manifest, signer = verify_adapter(form(adapter), trusted)

    assert (manifest.job_id, manifest.step) == ("ftjob-1", 3)
    assert manifest.files.keys() == {WEIGHTS_NAME, "README.md"}
    assert signer == trusted[0]


@each_form
def test_the_report_beside_an_adapter_is_not_signed(
    form: Form, adapter: Path, trusted: list[PublicKey]
) -> None:
    (adapter / REPORT_CARD_NAME).write_text("# Before and after")

    manifest, _ = verify_adapter(form(adapter), trusted)

    assert manifest.files.keys() == {WEIGHTS_NAME, "README.md"}


@each_form
@pytest.mark.parametrize("name", [WEIGHTS_NAME, "README.md", MANIFEST_NAME, SIGNATURE_NAME])
def test_one_bit_in_any_file_is_noticed(
    name: str, form: Form, adapter: Path, trusted: list[PublicKey]
) -> None:
    flip_a_bit(adapter / name)

    with pytest.raises(NotGenuineError):
        verify_adapter(form(adapter), trusted)


@each_form
def test_signing_again_with_another_key_does_not_help(
    form: Form, adapter: Path, trusted: list[PublicKey], tmp_path: Path
) -> None:
    (adapter / WEIGHTS_NAME).write_bytes(b"evil")
    sign(adapter, SigningKeys(tmp_path / "attacker"))

    with pytest.raises(NotGenuineError, match="by none of the given keys"):
        verify_adapter(form(adapter), trusted)


@each_form
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda path: (path / "more.py").touch(), r"\['more.py'\]", id="added"),
        pytest.param(lambda path: (path / "README.md").unlink(), r"\['README.md'\]", id="removed"),
        pytest.param(lambda path: (path / SIGNATURE_NAME).unlink(), "not signed", id="unsigned"),
        pytest.param(lambda path: (path / MANIFEST_NAME).unlink(), "not signed", id="no-manifest"),
    ],
)
def test_the_files_are_those_of_the_manifest_and_no_others(
    spoil: Callable[[Path], None],
    message: str,
    form: Form,
    adapter: Path,
    trusted: list[PublicKey],
) -> None:
    spoil(adapter)

    with pytest.raises(NotGenuineError, match=message):
        verify_adapter(form(adapter), trusted)


def test_an_adapter_of_a_rotated_key_is_verified_with_the_old_public_key(
    adapter: Path, keys: SigningKeys, trusted: list[PublicKey]
) -> None:
    new = keys.rotate()

    assert verify_adapter(adapter, trusted)[1] == trusted[0]
    with pytest.raises(NotGenuineError):
        verify_adapter(adapter, [new])


def test_a_link_is_no_file(adapter: Path, trusted: list[PublicKey], tmp_path: Path) -> None:
    shutil.move(adapter / WEIGHTS_NAME, tmp_path / "weights")
    (adapter / WEIGHTS_NAME).symlink_to(tmp_path / "weights")

    with pytest.raises(NotGenuineError, match=f"{WEIGHTS_NAME} is not a regular file"):
        verify_adapter(adapter, trusted)


def test_an_archive_with_two_files_of_one_name_is_refused(
    adapter: Path, trusted: list[PublicKey]
) -> None:
    archive = pack(adapter)
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(archive, "a") as target,
    ):
        target.writestr(WEIGHTS_NAME, b"evil")

    with pytest.raises(NotGenuineError, match="two files of one name"):
        verify_adapter(archive, trusted)


def test_no_more_is_unpacked_than_the_manifest_lists(
    adapter: Path, keys: SigningKeys, trusted: list[PublicKey]
) -> None:
    (adapter / WEIGHTS_NAME).write_bytes(bytes(1 << 28))
    small = ManifestFile(bytes=4, sha256="0" * 64)
    sign(adapter, keys, **{WEIGHTS_NAME: small})
    archive = pack(adapter, zipfile.ZIP_DEFLATED)
    reads: list[int] = []
    read = zipfile.ZipExtFile.read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            zipfile.ZipExtFile, "read", lambda file, n=-1: reads.append(n) or read(file, n)
        )
        with pytest.raises(NotGenuineError, match="not the file that was written"):
            verify_adapter(archive, trusted)

    assert all(0 < size <= 4 * 1024 * 1024 + 1 for size in reads)
    assert len(reads) < 10


@pytest.mark.parametrize("content", [b"", b"PK\3\4 and no more", b"x" * 1000])
def test_what_is_no_archive_is_refused(
    content: bytes, tmp_path: Path, trusted: list[PublicKey]
) -> None:
    (tmp_path / "adapter.zip").write_bytes(content)

    with pytest.raises(NotGenuineError, match="not an intact zip archive"):
        verify_adapter(tmp_path / "adapter.zip", trusted)


def test_a_path_with_nothing_there_is_named(tmp_path: Path, trusted: list[PublicKey]) -> None:
    with pytest.raises(NoAdapterError, match="absent is neither a directory nor a zip archive"):
        verify_adapter(tmp_path / "absent", trusted)


def test_openssl_verifies_the_signature_too(
    adapter: Path, trusted: list[PublicKey], tmp_path: Path
) -> None:
    require_programs("openssl")
    (tmp_path / "tunery.pub").write_text(trusted[0].pem)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "tunery.pub"]
    files = ["-rawin", "-in", adapter / MANIFEST_NAME, "-sigfile", adapter / SIGNATURE_NAME]

    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "Signature Verified Successfully")
