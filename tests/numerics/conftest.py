"""A model that is small enough to be trained in tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(directory)
    yield directory
    torch.use_deterministic_algorithms(mode=False)  # training in this process has turned it on
