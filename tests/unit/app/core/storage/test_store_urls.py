"""Which addresses of blob stores are accepted, and that a bad one is not repeated."""

from pathlib import Path

import pytest

from app.core.settings import Settings
from app.core.settings.store_urls import BucketAddress, DirectoryAddress, parse_store_url
from app.core.storage.local import LocalBlobStore
from app.core.storage.opening import open_store


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("", None),
        ("file:///srv/a%20b", DirectoryAddress(Path("/srv/a b"))),
        ("s3://my-bucket", BucketAddress("my-bucket", "")),
        ("s3://my.bucket/", BucketAddress("my.bucket", "")),
        ("s3://bucket/tunery/prod-1/", BucketAddress("bucket", "tunery/prod-1")),
    ],
)
def test_an_address_is_parsed(url: str, address: object) -> None:
    assert parse_store_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:bucket",
        "s3://Bucket",
        "s3://bucket/a//b",
        "s3://bucket/../b",
        "s3://bucket/.hidden",
        "s3://bucket/a b",
        "s3://key:sesame@bucket/p",
        "s3://bucket/p?endpoint=sesame",
        "file://srv/blobs",
        "file:///",
        "file:blobs",
        "/srv/blobs",
        "https://bucket.s3.amazonaws.com/sesame",
    ],
)
def test_any_other_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"it must|its prefix") as refused:
        parse_store_url(url)

    assert "sesame" not in str(refused.value)


def test_a_directory_elsewhere_is_a_local_store(settings: Settings, tmp_path: Path) -> None:
    changed = settings.model_copy(update={"store_url": f"file://{tmp_path}/elsewhere"})

    store = open_store(changed)

    assert isinstance(store, LocalBlobStore)
    assert store.scratch_file().is_relative_to(tmp_path / "elsewhere")
