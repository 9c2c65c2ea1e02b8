"""`tunery`, or `python -m tunery`: the command line."""

import sys

from tunery import make_importable


def main() -> None:
    make_importable()
    if sys.argv[1:] == ["worker", "--check"]:  # asked every few seconds, so it spares the imports
        from worker.health import report_health  # noqa: PLC0415 - of all the other commands

        sys.exit(report_health())
    from tunery.cli import run  # noqa: PLC0415 - only now can the service's own code be imported

    sys.exit(run())


if __name__ == "__main__":
    main()
