"""`python -m app`: serve the API. `python -m app --help` lists the other commands."""

from app.commands.service import run_app

if __name__ == "__main__":
    run_app()
