"""`python -m app`: serve the API. `python -m app --help` lists what else there is."""

from app.commands import run_app

if __name__ == "__main__":
    run_app()
