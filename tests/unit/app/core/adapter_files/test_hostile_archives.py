"""An archive is imported only if all of it is what `peft` writes for the base model."""

import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.core.adapter_files.archive import ImportRefusedError
from app.core.adapter_files.check import check_import
from app.core.adapter_files.process import Answer, Import, check_in_process
from app.core.job.lora_shape import LoraShape
from tests.adapters import (
    ADAPTER,
    CONFIG,
    LAYER,
    RANK,
    WEIGHTS,
    write_base_model,
    write_tensors,
    zip_adapter,
)

TARGETS = ("q_proj", "k_proj", "v_proj")
Q_A = f"{LAYER}.q_proj.lora_A.weight"
MAGNITUDES = {
    f"{LAYER}.q_proj.lora_magnitude_vector": [4],
    f"{LAYER}.v_proj.lora_magnitude_vector": [2],
}
EMBEDDINGS = {
    "base_model.model.model.embed_tokens.weight": [10, 4],
    "base_model.model.lm_head.weight": [10, 4],
}

Check = Callable[[bytes], Answer]


@pytest.fixture
def request_for(tmp_path: Path) -> Callable[[bytes], Import]:
    base_model = write_base_model(tmp_path / "base")

    def build(content: bytes) -> Import:
        (tmp_path / "adapter.zip").write_bytes(content)
        return Import(
            archive=tmp_path / "adapter.zip",
            weights=tmp_path / "weights",
            base_model=base_model,
            target_modules=TARGETS,
            max_rank=16,
            max_bytes=10_000_000,
        )

    return build


@pytest.fixture
def check(request_for: Callable[[bytes], Import]) -> Check:
    return lambda content: check_import(request_for(content))


def shape(**changes: object) -> LoraShape:
    values = {"rank": RANK, "alpha": 8.0, "dropout": 0.1, "target_modules": ("q_proj", "v_proj")}
    return LoraShape.model_validate(values | changes)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("folder", ["", "checkpoint-10/"])
def test_an_adapter_is_read_and_its_weights_are_copied(
    check: Check, tmp_path: Path, dtype: str, folder: str
) -> None:
    weights = write_tensors(ADAPTER, dtype, value=1)
    others = {"README.md": b"Hi", "training_args.bin": b"\x80\x04", "folder/": b""}

    answer = check(zip_adapter(others, weights=weights, folder=folder))

    assert answer == Answer(shape=shape())
    assert (tmp_path / "weights").read_bytes() == weights


def test_dora_and_trained_embeddings_are_read(check: Check) -> None:
    settings = {"use_dora": True, "modules_to_save": ["embed_tokens"]}

    answer = check(
        zip_adapter(settings=settings, weights=write_tensors(ADAPTER | MAGNITUDES | EMBEDDINGS))
    )

    assert answer == Answer(shape=shape(use_dora=True, modules_to_save=("embed_tokens",)))


@pytest.mark.parametrize("layers", [0, [0], [0, 0]])
def test_an_adapter_of_some_layers_is_read(check: Check, layers: object) -> None:
    answer = check(zip_adapter(settings={"layers_to_transform": layers}))

    assert answer == Answer(shape=shape(layers=(0,)))


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ([0, 1], "has 1, and the base model's layers are 0 to 0"),
        (True, "'layers_to_transform': Input should be"),
        ("all", "'layers_to_transform': Input should be"),
        ([10**9], "'layers_to_transform': Input should be"),
    ],
)
def test_layers_that_the_base_model_has_not_are_refused(
    check: Check, layers: object, why: str
) -> None:
    answer = check(zip_adapter(settings={"layers_to_transform": layers}))

    assert why in (answer.refused or "")


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "orthogonal", "eva"])
def test_a_start_that_changes_no_weight_of_the_base_model_is_read(
    check: Check, start: object
) -> None:
    assert check(zip_adapter(settings={"init_lora_weights": start})) == Answer(shape=shape())


def test_the_process_answers_the_same(request_for: Callable[[bytes], Import]) -> None:
    assert check_in_process(request_for(zip_adapter())) == shape()


def test_the_process_refuses_and_is_bounded(request_for: Callable[[bytes], Import]) -> None:
    with pytest.raises(ImportRefusedError, match="not a zip archive"):
        check_in_process(request_for(b"PK"))
    small = request_for(zip_adapter()).model_copy(update={"max_bytes": 10})
    with pytest.raises(ImportRefusedError, match="10 bytes of weights"):
        check_in_process(small)


def member(name: str, **fields: int) -> bytes:
    """An archive with one more member, whose entry has these fields."""
    buffer = io.BytesIO(zip_adapter())
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        archive.writestr(info, b"x")
    return buffer.getvalue()


def twice(name: str) -> bytes:
    buffer = io.BytesIO(zip_adapter())
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(name, b"x")
    return buffer.getvalue()


def encrypted() -> bytes:
    """The flag of an encrypted member, in the local header and in the directory."""
    content = bytearray(zip_adapter())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(signature) + offset] |= 1
    return bytes(content)


def damaged() -> bytes:
    content = bytearray(zip_adapter())
    start = content.index(WEIGHTS.encode()) + len(WEIGHTS)
    content[start + 20] ^= 0xFF
    return bytes(content)


def bomb() -> bytes:
    """A thousand times as large as the adapter can be."""
    return zip_adapter(weights=write_tensors(ADAPTER) + bytes(10_000_000))


def change_header(**changes: Any) -> bytes:
    return zip_adapter(weights=write_tensors(ADAPTER, **changes))


def tensor(dtype: str = "F32", shape: object = (2, 4), offsets: object = (0, 32)) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def without(name: str) -> bytes:
    return zip_adapter(weights=write_tensors({k: v for k, v in ADAPTER.items() if k != name}))


def raw_weights(length: int, text: bytes) -> bytes:
    return zip_adapter(weights=length.to_bytes(8, "little") + text)


def without_member(name: str, **others: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(zip_adapter())) as whole:
        kept = {each: whole.read(each) for each in whole.namelist() if each != name}
    with zipfile.ZipFile(buffer, "w") as archive:
        for each, data in (kept | others).items():
            archive.writestr(each, data)
    return buffer.getvalue()


def lzma() -> bytes:
    buffer = io.BytesIO(without_member(CONFIG))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr(CONFIG, json.dumps({}))
    return buffer.getvalue()


NAN = struct.unpack("<f", b"\x01\x00\xc0\x7f")[0]
HOSTILE: dict[str, tuple[Callable[[], bytes] | bytes, str]] = {
    "empty": (b"", "not a zip archive"),
    "text": (b"Hello", "not a zip archive"),
    "pickle": (b"\x80\x04K\x01.", "not a zip archive"),
    "cut off": (zip_adapter()[:-30], "not a zip archive"),
    "damaged": (damaged, "damaged"),
    "encrypted": (encrypted, "is encrypted"),
    "parent path": (lambda: member("../evil"), "leads out of the archive"),
    "hidden parent path": (lambda: member("a/../../evil"), "leads out of the archive"),
    "absolute path": (lambda: member("/etc/passwd"), "invalid path"),
    "drive": (lambda: member("C:evil"), "invalid path"),
    "backslash": (lambda: member("..\\evil"), "invalid path"),
    "line break": (lambda: member("a\nb"), "invalid path"),
    "symbolic link": (
        lambda: member("link", external_attr=(stat.S_IFLNK | 0o777) << 16),
        "a link or a special file",
    ),
    "device": (
        lambda: member("null", external_attr=(stat.S_IFCHR | 0o666) << 16),
        "a link or a special file",
    ),
    "weights twice": (lambda: twice(WEIGHTS), "twice"),
    "weights in two folders": (lambda: member(f"other/{WEIGHTS}"), "2 files named adapter_model"),
    "other folder": (lambda: without_member(CONFIG, **{f"x/{CONFIG}": b"{}"}), "the same folder"),
    "many members": (
        lambda: zip_adapter({f"{i}": b"" for i in range(1001)}),
        "more than 1,000 members",
    ),
    "no weights": (lambda: without_member(WEIGHTS), f"has no {WEIGHTS}."),
    "pickled weights": (
        lambda: without_member(WEIGHTS, **{"adapter_model.bin": b"\x80"}),
        "from safetensors only",
    ),
    "no configuration": (lambda: without_member(CONFIG), f"has no {CONFIG}"),
    "lzma": (lzma, ""),
    "large configuration": (
        lambda: zip_adapter(settings={"revision": "x" * 2_000_000}),
        "more than 1,048,576 bytes",
    ),
    "bomb": (bomb, "and not"),
    "not json": (lambda: without_member(CONFIG, **{CONFIG: b"{'r': 2}"}), "It is not JSON"),
    "json list": (lambda: without_member(CONFIG, **{CONFIG: b"[]"}), "no JSON object"),
    "repeated key": (lambda: without_member(CONFIG, **{CONFIG: b'{"r":1,"r":2}'}), "not JSON"),
    "deep json": (lambda: without_member(CONFIG, **{CONFIG: b"[" * 100_000}), ""),
    "other method": (lambda: zip_adapter(settings={"peft_type": "IA3"}), "'peft_type' must be"),
    "other task": (lambda: zip_adapter(settings={"task_type": "SEQ_CLS"}), "'task_type' must be"),
    "bias": (lambda: zip_adapter(settings={"bias": "all"}), "'bias' must be"),
    "rank pattern": (
        lambda: zip_adapter(settings={"rank_pattern": {"q_proj": 4}}),
        "'rank_pattern' is set",
    ),
    **{
        f"starts with {start}": (
            zip_adapter(settings={"init_lora_weights": start}),
            f"'init_lora_weights' is '{start}', so the adapter needs changed weights",
        )
        for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "new")
    },
    "unknown setting": (lambda: zip_adapter(settings={"new_thing": 1}), "'new_thing' is set"),
    "high rank": (lambda: zip_adapter(settings={"r": 32}), "'r' is 32, and can be at most 16"),
    "rank zero": (lambda: zip_adapter(settings={"r": 0}), "'r': "),
    "rank in words": (lambda: zip_adapter(settings={"r": "2"}), "'r': "),
    "no rank": (lambda: zip_adapter(settings={"r": None}), "'r' "),
    "infinite alpha": (
        lambda: without_member(CONFIG, **{CONFIG: b'{"lora_alpha": Infinity}'}),
        "It is not JSON",
    ),
    "pattern of modules": (
        lambda: zip_adapter(settings={"target_modules": ".*proj"}),
        "must be a list of names",
    ),
    "other modules": (
        lambda: zip_adapter(settings={"target_modules": ["q_proj", "experts"]}),
        "'target_modules' has 'experts'",
    ),
    "no modules": (lambda: zip_adapter(settings={"target_modules": []}), "has no module"),
    "other embeddings": (
        lambda: zip_adapter(settings={"modules_to_save": ["score"]}),
        "'modules_to_save' has 'score'",
    ),
    "fewer modules": (
        lambda: zip_adapter(settings={"target_modules": ["q_proj"]}),
        "does not belong",
    ),
    "missing tensor": (lambda: without(Q_A), f"{Q_A} is missing"),
    "additional tensor": (
        lambda: zip_adapter(weights=write_tensors(ADAPTER | {"extra": [1]})),
        "'extra' does not belong",
    ),
    "dora without vectors": (
        lambda: zip_adapter(settings={"use_dora": True}),
        "lora_magnitude_vector is missing",
    ),
    "embeddings half": (
        lambda: zip_adapter(
            settings={"modules_to_save": ["lm_head"]},
            weights=write_tensors(ADAPTER | {"base_model.model.lm_head.weight": [10, 4]}),
        ),
        "embed_tokens.weight is missing",
    ),
    "other shape": (
        lambda: zip_adapter(weights=write_tensors(ADAPTER | {Q_A: [RANK, 5]})),
        f"{Q_A} has the shape [2, 5], and not [2, 4]",
    ),
    "other type": (lambda: zip_adapter(weights=write_tensors(ADAPTER, "F64")), "of type 'F64'"),
    "whole numbers": (lambda: zip_adapter(weights=write_tensors(ADAPTER, "I64")), "of type 'I64'"),
    "infinite": (
        lambda: zip_adapter(weights=write_tensors(ADAPTER, value=float("inf"))),
        "not finite",
    ),
    "not a number": (lambda: zip_adapter(weights=write_tensors(ADAPTER, value=NAN)), "not finite"),
    "infinite half": (
        lambda: zip_adapter(weights=write_tensors(ADAPTER, "F16", value=float("-inf"))),
        "not finite",
    ),
    "infinite brain": (
        lambda: zip_adapter(weights=write_tensors(ADAPTER, "BF16", value=0x7F80)),
        "not finite",
    ),
    "short header": (lambda: raw_weights(0, b"{}"), "no valid length"),
    "huge header": (lambda: raw_weights(2**62, b"{}"), "no valid length"),
    "cut header": (lambda: raw_weights(100, b"{}"), "cut off"),
    "header of no json": (lambda: raw_weights(4, b"\xff\xfe{}"), "not JSON"),
    "overlap": (lambda: change_header(**{Q_A: tensor(offsets=(1, 33))}), "overlap others"),
    "negative offset": (lambda: change_header(**{Q_A: tensor(offsets=(-32, 0))}), "not described"),
    "offsets of another size": (lambda: change_header(**{Q_A: tensor(offsets=(0, 31))}), "match"),
    "negative shape": (lambda: change_header(**{Q_A: tensor(shape=(-2, -4))}), "not described"),
    "shape of truth": (lambda: change_header(**{Q_A: tensor(shape=(True, 8))}), "not described"),
    "tensor of text": (lambda: change_header(**{Q_A: "tensor"}), "not described"),
    "more bytes": (lambda: zip_adapter(weights=write_tensors(ADAPTER) + b"x"), "and not"),
    "fewer bytes": (lambda: zip_adapter(weights=write_tensors(ADAPTER)[:-1]), "and not"),
}


@pytest.mark.parametrize(("content", "why"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_adapter_of_the_base_model_is_refused(
    check: Check, content: Callable[[], bytes] | bytes, why: str
) -> None:
    answer = check(content if isinstance(content, bytes) else content())

    assert answer.shape is None
    assert why in (answer.refused or "")
    assert answer.refused
