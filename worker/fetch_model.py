"""`python -m worker.fetch_model ID [ID ...]` installs base models; `--list` shows them."""

import argparse
import logging
import sys
from collections.abc import Sequence

from app.core.base_models import Catalogue, CatalogueEntry, CatalogueError, load_catalogue
from app.core.settings import Settings
from worker.model_store.errors import InstallError
from worker.model_store.install import install_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Install every model that is named; the exit status is 1 if one of them cannot be."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("worker").setLevel(logging.INFO)
    try:
        catalogue = load_catalogue(Settings().data_dir)
    except CatalogueError as error:
        return _fail(str(error))
    if options.list:
        sys.stdout.write(_table(catalogue))
        return 0
    results = [_install(name, catalogue) for name in options.models]
    return max(results)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m worker.fetch_model",
        description="Install base models into DATA_DIR/models, so that jobs can tune them.",
    )
    parser.add_argument(
        "models", nargs="*", metavar="ID", help="id in the catalogue, or hub repository"
    )
    parser.add_argument("--list", action="store_true", help="show the catalogue, and stop")
    options = parser.parse_args(arguments)
    if not options.models and not options.list:
        parser.error("name at least one model, or use --list to see which there are")
    return options


def _install(name: str, catalogue: Catalogue) -> int:
    entry = catalogue.find(name)
    if entry is None:
        known = ", ".join(entry.id for entry in catalogue.entries)
        return _fail(
            f"There is no base model {name!r}. There are {known}. "
            "docs/base-models.md says how to add one."
        )
    try:
        install_model(entry, catalogue)
    except (InstallError, OSError) as error:
        return _fail(f"{entry.id} was not installed. {error}")
    except KeyboardInterrupt:
        return _fail(f"{entry.id} was not installed: interrupted. Run it again to go on.")
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(message + "\n")
    return 1


def _table(catalogue: Catalogue) -> str:
    heading = ("ID", "NAME", "LICENCE", "CONTEXT", "INSTALLED")
    rows = [heading, *(_row(entry, catalogue) for entry in catalogue.entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


def _row(entry: CatalogueEntry, catalogue: Catalogue) -> tuple[str, str, str, str, str]:
    is_installed = catalogue.find_installed(entry.id) is not None
    return (
        entry.id,
        entry.name,
        entry.licence,
        str(entry.context_length),
        "yes" if is_installed else "no",
    )


if __name__ == "__main__":
    sys.exit(main())
