"""The house rules that a linter does not know."""

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
THE_DOOR = "app/api/deps.py"
OPENS_A_TRANSACTION = re.compile(r"\.(?:reading|writing|transact)\b|\.database\.(?!version\b)")


def test_a_route_reaches_the_database_in_one_way() -> None:
    """It hands a function to `Resources`, which alone opens transactions."""
    others = [
        f"{name}: {line.strip()}"
        for path in sorted((PROJECT / "app/api").rglob("*.py"))
        if (name := str(path.relative_to(PROJECT))) != THE_DOOR
        for line in path.read_text("utf-8").splitlines()
        if OPENS_A_TRANSACTION.search(line)
    ]

    assert OPENS_A_TRANSACTION.search((PROJECT / THE_DOOR).read_text("utf-8"))
    assert others == []
