"""`python -m app`: serve the API. `python -m app openapi`: print its OpenAPI document."""

import json
import sys

import uvicorn

from app.core.logging import configure_logging
from app.core.settings import Settings
from app.main import create_app


def main(arguments: list[str]) -> int:
    settings = Settings()
    if arguments == ["openapi"]:
        sys.stdout.write(json.dumps(create_app(settings).openapi(), indent=2) + "\n")
        return 0
    if arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    configure_logging(settings.log_level)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
