"""Code blocks of the documents, to be run as they stand."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def block_of(document: str, name: str) -> str:
    """The code block behind the comment that gives it this name."""
    text = (ROOT / document).read_text("utf-8")
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, f"{document} has no block named {name}."
    return found[1]
