"""Directories that pass for models and are attacks: each is refused with a clear reason.

What only a long run tries is a variation of what every run tries.
"""

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from app.core.base_models import Catalogue, CatalogueEntry, DirectorySource
from tests.effort import IS_LONG
from tests.models import sharded_model_files, tiny_model_files, write_files
from worker.model_store.errors import InstallError
from worker.model_store.install import install_model

INDEX = "model.safetensors.index.json"
WITHIN_S = 60.0
"""How long an installation may take. Most of it is for loading libraries on a busy machine."""


class Attack(NamedTuple):
    name: str
    write: Callable[[Path], object]
    """Writes the directory that is given as a model."""
    reason: str
    """What the message must have."""


def with_files(files: dict[str, bytes]) -> Callable[[Path], object]:
    return lambda directory: write_files(directory, tiny_model_files() | files)


def config(name: str, what: dict[str, Any], *, file: str = "config.json") -> Attack:
    content = json.dumps({"model_type": "llama"} | what).encode()
    key = next(iter(what))
    return Attack(f"{file}-{name}", with_files({file: content}), f"{file} has the key '{key}'")


def raw(name: str, content: bytes, reason: str, *, file: str = "config.json") -> Attack:
    return Attack(f"{file}-{name}", with_files({file: content}), reason)


def index(name: str, shard: object, reason: str = "not a safetensors file beside it") -> Attack:
    content = json.dumps({"weight_map": {"weight": shard}}).encode()
    files = sharded_model_files() | {INDEX: content}
    return Attack(f"index-{name}", lambda directory: write_files(directory, files), reason)


def template(name: str, text: str, reason: str) -> Attack:
    return raw(name, text.encode(), reason, file="chat_template.jinja")


def without_weights(**files: bytes) -> Callable[[Path], object]:
    names = {name.replace("_bin", ".bin").replace("_pt", ".pt"): files[name] for name in files}

    def write(directory: Path) -> None:
        write_files(directory, tiny_model_files() | names)
        (directory / "model.safetensors").unlink()

    return write


def with_link(name: str, target: str) -> Callable[[Path], object]:
    def write(directory: Path) -> None:
        write_files(directory, tiny_model_files())
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(target)

    return write


def with_special(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def write(directory: Path) -> None:
        write_files(directory, tiny_model_files())
        make(directory / "merges.txt")

    return write


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def with_sparse(name: str, size: int) -> Callable[[Path], object]:
    def write(directory: Path) -> None:
        write_files(directory, tiny_model_files())
        with (directory / name).open("ab") as file:
            file.truncate(size)

    return write


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def weights(name: str, content: bytes) -> Attack:
    return raw(name, content, "is not a safetensors file", file="model.safetensors")


PICKLE = b"\x80\x04cposix\nsystem\n(X\x02\x00\x00\x00idtR."
TENSOR = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
NESTED = b'{"a":' * 50 + b"1" + b"}" * 50

CONFIGS = [
    config("auto-map", {"auto_map": {"AutoModel": "modeling.Model"}}),
    config("auto-map-of-a-repository", {"auto_map": {"AutoModel": "evil/code--modeling.Model"}}),
    config("trusts-remote-code", {"trust_remote_code": True}),
    config("internal-attention", {"_attn_implementation_internal": "evil/kernel"}),
    config("internal-experts", {"_experts_implementation_internal": "evil/kernel"}),
    config("attention-of-a-repository", {"attn_implementation": "evil/kernel"}),
    config("experts-of-a-repository", {"experts_implementation": {"": "evil/kernel"}}),
    config("custom-generate", {"custom_generate": "evil/generate"}),
    config("weights-elsewhere", {"transformers_weights": "../../evil.safetensors"}),
    config("other-configuration", {"configuration_files": ["config.9.0.0.json"]}),
    Attack(
        "config.json-hidden-in-a-part",
        with_files({"config.json": b'{"text_config": {"layers": [{"auto_map": {}}]}}'}),
        "config.json has the key 'auto_map'",
    ),
    config("auto-map", {"auto_map": {}}, file="tokenizer_config.json"),
    config("trusts", {"trust_remote_code": True}, file="tokenizer_config.json"),
    config("other-files", {"fast_tokenizer_files": ["x.json"]}, file="tokenizer_config.json"),
    config("passwd", {"tokenizer_file": "/etc/passwd"}, file="tokenizer_config.json"),
    config("vocabulary", {"vocab_file": "..\\up"}, file="tokenizer_config.json"),
    config("trusts", {"trust_remote_code": True}, file="generation_config.json"),
    config("custom-generate", {"custom_generate": "evil/x"}, file="generation_config.json"),
]

JSON = [
    raw("key-twice", b'{"auto_map": {}, "auto_map": null}', "given twice"),
    raw("nested-50-deep", NESTED, "nested more than 32 levels deep"),
    raw("nested-100000-deep", b"[" * 100_000, "nested too deeply"),
    raw("a-list", b"[]", "not a JSON object"),
    raw("not-utf-8", b'{"a": "\xff"}', "not UTF-8"),
    raw("not-a-number", b'{"dropout": NaN}', "NaN is not JSON"),
    raw("a-lone-surrogate", b'{"a": "\\ud800"}', "surrogate"),
    raw("millions-of-digits", b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
    raw("huge", b'{"a": "' + b"x" * 5_000_000 + b'"}', "at most 4,194,304 are taken"),
    raw("too-many-layers", b'{"num_hidden_layers": 1000000000}', "1,000,000,000 layers"),
    raw(
        "layers-of-a-part",
        b'{"text_config": {"num_hidden_layers": 2000}}',
        "promises 2,000 layers",
    ),
    raw("nested-deep", b"[" * 5000 + b"]" * 5000, "is not JSON", file="tokenizer.json"),
    raw("cut-off", b'{"model"', "is not JSON", file="tokenizer.json"),
    raw("nested-deep", b"[" * 5000, "is not JSON", file="special_tokens_map.json"),
    Attack("tokenizer.json-huge", with_sparse("tokenizer.json", 1 << 30), "tokenizer.json has"),
    Attack("readme-huge", with_sparse("README.md", 1 << 40), "README.md has"),
]

INDEXES = [
    index("parent", "../model.safetensors"),
    index("absolute", "/etc/passwd"),
    index("deep", "a/b/../../../c.safetensors"),
    index("pickle", "pytorch_model-00001.bin"),
    index("code", "modeling.py"),
    index("dots", ".."),
    index("nul", "model\0.safetensors", "U.0000"),
    index("number", 7),
    index("missing", "model-00009-of-00002.safetensors", "which is missing"),
    raw("no-map", b'{"weight_map": []}', "no weight_map", file=INDEX),
    raw("superfluous", b'{"weight_map": {"w": "../x.safetensors"}}', "beside it", file=INDEX),
]

WEIGHTS = [
    Attack("pickle-alone", without_weights(pytorch_model_bin=PICKLE), "never from pickles"),
    Attack("pickle-pt-alone", without_weights(model_pt=PICKLE), "never from pickles"),
    weights("pickle-in-disguise", PICKLE),
    weights("header-of-an-exabyte", struct.pack("<Q", 1 << 60)),
    weights("header-negative", struct.pack("<q", -1)),
    weights("beyond-its-end", safetensors({"w": TENSOR})),
    weights("overlapping", safetensors({"v": TENSOR, "w": TENSOR}, b"data")),
    weights("a-hole", safetensors({"w": TENSOR | {"data_offsets": [4, 8]}}, b"datadata")),
    weights("shape-of-exabytes", safetensors({"w": TENSOR | {"shape": [1 << 62, 4]}}, b"data")),
    weights("nested-header", safetensors(b'{"a":' * 50_000)),
    weights("unknown-type", safetensors({"w": TENSOR | {"dtype": "PY"}}, b"data")),
]

FILES = [
    Attack(
        "link-to-passwd", with_link("merges.txt", "/etc/passwd"), "is a link out of its directory"
    ),
    Attack(
        "link-upwards", with_link("tokenizer.json", "../secret"), "is a link out of its directory"
    ),
    Attack("link-to-weights", with_link("model.safetensors", "/dev/zero"), "not a regular file"),
    Attack("link-to-itself", with_link("merges.txt", "merges.txt"), "not a regular file"),
    Attack("a-pipe", with_special(os.mkfifo), "not a regular file"),
    Attack("a-socket", with_special(make_socket), "not a regular file"),
    Attack("a-directory", with_special(Path.mkdir), "not a regular file"),
]

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLES = (
    "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)
IN_A_LIST = {"chat_template": [{"name": "tool_use", "template": "{{ 'x' * 99999 }}"}]}
NO_TIME, NO_MEMORY = "processor time", "needs more than 512 MiB"
FORBIDDEN = "does what no template may do"

TEMPLATES = [
    template("loops", LOOPS, NO_TIME),
    template("fills-the-memory", "{{ 'x' * 1000000000 }}", NO_MEMORY),
    template("writes-on", "{% for a in range(99999) %}xxxxxxxxxx{% endfor %}", "writes 999,990 "),
    template("reaches-out", "{{ ''.__class__.__mro__[1].__subclasses__() }}", FORBIDDEN),
    template("is-none", "{% for %}", "not a valid template"),
    template("is-huge", "x" * 300_000, "at most 262,144 are taken"),
]

MORE_TEMPLATES = [
    template("doubles", DOUBLES, NO_MEMORY),
    template("calls-itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too deeply"),
    template("a-range-too-long", "{% for a in range(10 ** 9) %}{% endfor %}", FORBIDDEN),
    template("reads-globals", "{{ messages.__init__.__globals__['os'] }}", FORBIDDEN),
    template("changes-its-input", "{{ messages.clear() }}", FORBIDDEN),
    template("nested-deep", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    template("only-with-tools", "{% if tools %}" + LOOPS + "{% endif %}", NO_TIME),
    raw(
        "a-template-in-a-list",
        json.dumps(IN_A_LIST).encode(),
        r"\(2\) writes 99,999 characters",
        file="tokenizer_config.json",
    ),
]

ATTACKS = [*CONFIGS, *JSON, *INDEXES, *WEIGHTS, *FILES, *TEMPLATES]


@pytest.fixture
def source_dir(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"{}")
    return tmp_path / "their-model"


@pytest.fixture
def entry(source_dir: Path) -> CatalogueEntry:
    return CatalogueEntry(
        id="theirs",
        name="Theirs",
        source=DirectorySource(kind="directory", path=source_dir),
        licence="MIT",
        context_length=128,
        target_modules=("q_proj",),
    )


@pytest.fixture
def catalogue(entry: CatalogueEntry, tmp_path: Path) -> Catalogue:
    return Catalogue([entry], tmp_path / "models")


def test_there_are_enough_of_them() -> None:
    names = [attack.name for attack in (*ATTACKS, *MORE_TEMPLATES)]

    assert len(set(names)) == len(names) > 70


@pytest.mark.parametrize(
    "attack", ATTACKS + (MORE_TEMPLATES if IS_LONG else []), ids=lambda attack: attack.name
)
def test_it_is_refused_with_the_reason(
    attack: Attack, source_dir: Path, entry: CatalogueEntry, catalogue: Catalogue
) -> None:
    attack.write(source_dir)
    began_s = monotonic()

    with pytest.raises(InstallError, match=attack.reason):
        install_model(entry, catalogue)

    assert monotonic() - began_s < WITHIN_S
    assert catalogue.find_installed("theirs") is None
    assert not catalogue.directory("theirs").exists()


@pytest.mark.parametrize(
    "name",
    ["modeling.py", "pytorch_model.bin", "optimizer.pt", "data.pkl", "kernel.so", "setup.sh"],
)
def test_a_file_that_could_be_run_is_left_where_it_is(
    name: str, source_dir: Path, entry: CatalogueEntry, catalogue: Catalogue
) -> None:
    write_files(source_dir, tiny_model_files() | {name: PICKLE})

    assert name not in install_model(entry, catalogue).files
    assert not (catalogue.directory("theirs") / name).exists()
