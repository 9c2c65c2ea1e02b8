import json
from pathlib import Path
from typing import Any

import pytest

from tests.models import sharded_model_files, tiny_model_files, write_files
from worker.model_store.checks import check_model_directory
from worker.model_store.errors import RefusedModelError
from worker.model_store.files import is_wanted

INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "model"


def refusal_of(directory: Path, files: dict[str, bytes]) -> str:
    write_files(directory, files)
    with pytest.raises(RefusedModelError) as caught:
        check_model_directory(directory)
    return str(caught.value)


@pytest.mark.parametrize("files", [tiny_model_files(), sharded_model_files()], ids=["one", "two"])
def test_a_model_of_data_alone_passes(files: dict[str, bytes], directory: Path) -> None:
    check_model_directory(write_files(directory, files))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("config.json", {"auto_map": {"AutoModel": "code.Model"}}),
        ("config.json", {"trust_remote_code": True}),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}),
        ("config.json", {"text_config": [{"auto_map": {}}]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}),
        ("generation_config.json", {"trust_remote_code": False}),
    ],
)
def test_a_configuration_that_can_have_code_run_is_refused(
    name: str, config: dict[str, Any], directory: Path
) -> None:
    message = refusal_of(directory, tiny_model_files() | {name: json.dumps(config).encode()})

    assert message.startswith(f"{name} has the key ")
    assert "runs no code" in message


@pytest.mark.parametrize("value", ["someone/kernel", {"text_config": "someone/kernel@main"}])
def test_a_configuration_that_names_a_kernel_to_load_is_refused(
    value: object, directory: Path
) -> None:
    config = json.dumps({"attn_implementation": value}).encode()

    message = refusal_of(directory, tiny_model_files() | {"config.json": config})

    assert "'attn_implementation'" in message


def test_an_implementation_that_transformers_has_itself_may_be_named(directory: Path) -> None:
    config = json.dumps({"model_type": "llama", "attn_implementation": "eager"}).encode()

    check_model_directory(write_files(directory, tiny_model_files() | {"config.json": config}))


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "model.bin", 3]
)
def test_an_index_that_names_something_else_than_a_file_beside_it_is_refused(
    shard: object, directory: Path
) -> None:
    index = json.dumps({"weight_map": {"weight": shard}}).encode()

    assert repr(str(shard)) in refusal_of(directory, sharded_model_files() | {INDEX: index})


def test_an_index_is_looked_at_although_a_single_file_makes_it_superfluous(
    directory: Path,
) -> None:
    index = json.dumps({"weight_map": {"weight": "../up.safetensors"}}).encode()

    assert "'../up.safetensors'" in refusal_of(directory, tiny_model_files() | {INDEX: index})


@pytest.mark.parametrize("index", [b"{}", b'{"weight_map": {}}', b'{"weight_map": []}'])
def test_an_index_without_weights_is_refused(index: bytes, directory: Path) -> None:
    assert "weight_map" in refusal_of(directory, sharded_model_files() | {INDEX: index})


def test_a_missing_shard_is_named(directory: Path) -> None:
    files = sharded_model_files()
    del files["model-00002-of-00002.safetensors"]

    assert "model-00002-of-00002.safetensors" in refusal_of(directory, files)


def test_pickled_weights_are_no_weights(directory: Path) -> None:
    files = tiny_model_files()
    files["pytorch_model.bin"] = files.pop("model.safetensors")

    assert "never from pickles" in refusal_of(directory, files)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\0\0\0\0\0\0\0not json", tiny_model_files()["model.safetensors"][:-1]],
    ids=["empty", "no-header", "cut-off"],
)
def test_damaged_weights_are_refused(content: bytes, directory: Path) -> None:
    message = refusal_of(directory, tiny_model_files() | {"model.safetensors": content})

    assert message.startswith("model.safetensors is not a safetensors file")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_model_without_its_configuration_or_tokenizer_is_refused(
    name: str, directory: Path
) -> None:
    files = tiny_model_files()
    del files[name]

    assert "Add it." in refusal_of(directory, files)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_no_json_object_is_refused(content: bytes, directory: Path) -> None:
    assert "config.json is not" in refusal_of(
        directory, tiny_model_files() | {"config.json": content}
    )


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin", "adapter_config.json"])
def test_a_file_that_belongs_to_no_model_is_refused(name: str, directory: Path) -> None:
    assert name in refusal_of(directory, tiny_model_files() | {name: b""})


def test_a_link_is_refused(directory: Path, tmp_path: Path) -> None:
    write_files(directory, tiny_model_files())
    (tmp_path / "elsewhere").write_bytes(b"")
    (directory / "merges.txt").symlink_to(tmp_path / "elsewhere")

    assert "merges.txt is not a regular file" in refusal_of(directory, {})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tokenizer.json", True),
        ("LICENSE", True),
        ("LICENSE.txt", True),
        ("USE_POLICY.md", True),
        ("chat_template.jinja", True),
        ("LICENSE.py", False),
        ("tokenizer.py", False),
        ("training_args.bin", False),
        ("original/params.json", False),
        ("onnx/model.onnx", False),
        ("consolidated.safetensors", False),
    ],
)
def test_only_known_files_are_wanted_beside_the_weights(name: str, *, expected: bool) -> None:
    assert is_wanted(name) is expected
