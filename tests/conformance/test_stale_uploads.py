"""Ending uploads in parts that were left behind, where there are none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stores.servers import NAMES, StoreServer


@pytest.mark.parametrize("name", NAMES)
def test_a_bucket_without_uploads_has_nothing_to_end(
    name: str, own_server: Callable[[str], StoreServer], tmp_path: Path
) -> None:
    """rclone answers 404 then. It must not stop the janitor."""
    store = own_server(name).store(tmp_path)

    assert not store.collect_stale(older_than_s=0)
