"""Datasets and catalogues of base models."""

import json
from pathlib import Path
from typing import Any

from app.core.base_models import CATALOGUE_NAME, RECORD_NAME, InstalledModel


def build_chat_file(examples: int, *, first: int = 0) -> bytes:
    """A dataset of questions that all have the same kind of answer, each of them different."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What comes after {number}?"},
                {"role": "assistant", "content": f"After {number} comes {number + 1}."},
            ]
        }
        for number in range(first, first + examples)
    ]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def catalogue_entry(model_id: str, **changes: Any) -> dict[str, Any]:
    """A base model that lies in a directory, unless `changes` has another `source`."""
    return {
        "id": model_id,
        "name": f"The model {model_id}",
        "source": {"kind": "directory", "path": "/models/our-tiny"},
        "licence": "MIT",
        "context_length": 512,
        "target_modules": ["q_proj", "v_proj"],
    } | changes


def write_entries(data_dir: Path, *entries: dict[str, Any]) -> None:
    """Write the catalogue of a data directory; nothing is installed by that."""
    data_dir.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for entry in entries:
        source = {f"source.{key}": value for key, value in entry["source"].items()}
        values = {key: value for key, value in entry.items() if key != "source"} | source
        # A string, number, list or truth value of JSON is one of TOML, too.
        lines += ["[[model]]", *(f"{key} = {json.dumps(values[key])}" for key in values), ""]
    (data_dir / CATALOGUE_NAME).write_text("\n".join(lines), "utf-8")


def write_catalogue(data_dir: Path) -> None:
    """A catalogue with `tiny` and `hub-tiny`, which are installed in name only, and `absent`."""
    tiny = catalogue_entry(
        "tiny",
        name="Tiny",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        max_lora_rank=64,
    )
    absent = catalogue_entry(
        "absent",
        name="Known, and not installed",
        source={"kind": "hub", "repo": "us/absent"},
        target_modules=["q_proj"],
    )
    hub_tiny = catalogue_entry(
        "hub-tiny",
        name="Tiny, from a hub",
        source={"kind": "hub", "repo": "us/hub-tiny"},
        licence="Apache-2.0",
        context_length=32768,
        supports_tools=True,
    )
    write_entries(data_dir, tiny, absent, hub_tiny)
    for model_id, repo in {"tiny": "our-tiny", "hub-tiny": "us/hub-tiny"}.items():
        record = InstalledModel(
            id=model_id,
            repo=repo,
            revision=None if "/" not in repo else "1" * 40,
            licence="MIT",
            files={},
            sha256="0" * 64,
            installed_at=1_700_000_000,
        )
        directory = data_dir / "models" / model_id
        directory.mkdir(parents=True)
        (directory / RECORD_NAME).write_text(record.model_dump_json())
