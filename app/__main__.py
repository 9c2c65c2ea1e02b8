"""`python -m app`: serve the API. `python -m app --help` lists what else there is."""

import sys

from app.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
