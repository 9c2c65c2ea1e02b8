"""`tunery`, or `python -m tunery`: the command line."""

import os
import sys

from tunery import make_importable


def main() -> None:
    make_importable()
    if sys.argv[1:] == ["worker", "--check"]:  # asked every few seconds, so it spares the imports
        from worker.health import report_health  # noqa: PLC0415 - of all the other commands

        sys.exit(report_health())
    # Only now can the service's own code be imported.
    from tunery.client.cli import client, is_for_client  # noqa: PLC0415

    if is_for_client(typed_words()):
        client(prog_name="tunery")
    from tunery.cli import run  # noqa: PLC0415 - takes most of a second, which clients are spared

    sys.exit(run())


def typed_words() -> list[str]:
    """The words after `tunery`: those of this command, or of the one that a shell completes."""
    completed = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    return completed.split()[1:] if "_TUNERY_COMPLETE" in os.environ else sys.argv[1:]


if __name__ == "__main__":
    main()
