from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from worker.artifact_size import ROOM_BYTES, largest_artifact


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """A model of two files, with a matrix, a vector, and two matrices in one tensor."""
    first = {"matrix": np.zeros((8, 4)), "vector": np.zeros(3)}
    second = {"matrices": np.zeros((2, 5, 6))}
    (tmp_path / "model-1.safetensors").write_bytes(safetensors.numpy.save(first))
    (tmp_path / "model-2.safetensors").write_bytes(safetensors.numpy.save(second))
    return tmp_path


def test_an_artifact_is_as_large_as_an_adapter_on_every_matrix_allows(base_model: Path) -> None:
    size = largest_artifact(base_model, rank=2, total_steps=10)

    rows_and_columns = (8 + 4) + 2 * (5 + 6)
    assert size == 4 * 4 * 2 * rows_and_columns + 10 * 2048 + ROOM_BYTES


def test_embeddings_that_are_trained_whole_make_it_larger(base_model: Path) -> None:
    tensors = {"model.embed_tokens.weight": np.zeros((9, 4)), "lm_head.weight": np.zeros((7, 4))}
    (base_model / "model-3.safetensors").write_bytes(safetensors.numpy.save(tensors))

    usual = largest_artifact(base_model, rank=2, total_steps=10)
    size = largest_artifact(base_model, rank=2, total_steps=10, has_embeddings=True)

    assert size == usual + 4 * 4 * (9 * 4 + 7 * 4)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100], ids=["empty", "garbage"])
def test_a_model_that_cannot_be_read_is_left_to_the_training_process(
    base_model: Path, content: bytes
) -> None:
    for weights in base_model.iterdir():
        weights.write_bytes(content)

    assert largest_artifact(base_model, rank=2, total_steps=0) == ROOM_BYTES
