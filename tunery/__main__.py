"""`tunery`, or `python -m tunery`: the command line."""

import sys

from tunery import make_importable


def main() -> None:
    make_importable()
    from tunery.cli import run  # noqa: PLC0415 - only now can the service's own code be imported

    sys.exit(run())


if __name__ == "__main__":
    main()
