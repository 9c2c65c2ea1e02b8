"""The house rules that a linter does not know."""

import re
from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SOURCES = [path for room in ("app", "worker", "tunery") for path in (PROJECT / room).rglob("*.py")]
BACKENDS = {"app/core/db/sqlite.py", "app/core/db/postgresql.py"}
ASKS_WHICH_DATABASE = re.compile(r"dialect\.name|is_sqlite|get_backend_name|drivername")
MAX_FILES = 14
THE_DOOR = "app/api/deps.py"
OPENS_A_TRANSACTION = re.compile(r"\.(?:reading|writing|transact)\b|\.database\.(?!version\b)")


def test_only_a_backend_knows_which_database_it_is() -> None:
    """One other place asks: the one that chooses the backend by the URL."""
    asking = [
        f"{name}: {line.strip()}"
        for path in SOURCES
        if (name := str(path.relative_to(PROJECT))) not in BACKENDS
        for line in path.read_text("utf-8").splitlines()
        if ASKS_WHICH_DATABASE.search(line)
    ]

    assert asking == ["app/core/db/session.py: name = url.get_backend_name()"]


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


def test_a_folder_is_short_enough_to_read() -> None:
    files = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    long = {str(folder.relative_to(PROJECT)): n for folder, n in files.items() if n > MAX_FILES}

    assert long == {}


def test_the_architecture_page_names_only_files_that_exist() -> None:
    page = (PROJECT / "docs/architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:app|worker|tunery|migrations|docs)/[\w./-]*)`", page)

    assert len(named) > 30
    assert [name for name in named if not (PROJECT / name).exists()] == []
