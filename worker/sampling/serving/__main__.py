"""`python -m worker.sampling.serving LISTENER CONTROL OPTIONS [CONFINEMENT]`: answer requests.

LISTENER is the descriptor of the socket that the API connects to, and CONTROL that of a pipe from
the keeper. OPTIONS and CONFINEMENT are JSON. Without CONFINEMENT the process is not contained.
"""

import os
import sys
from pathlib import Path

from app.core.machine.linux import die_with_parent, share_heaps
from worker.launch.sandbox.apply import confine_this_process
from worker.launch.sandbox.confinement import Confinement
from worker.sampling.serving.options import ServingOptions


def main(
    listener: int, control: int, options: ServingOptions, confinement: Confinement | None
) -> None:
    die_with_parent(sys.stdout.fileno())  # also if this process waits for one that is contained
    if confinement is not None:
        confine_this_process(confinement, Path.cwd(), listener, control)
    share_heaps(2)
    # `transformers` would load weights with four threads, also beside a training.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    # Only now: the libraries, too, are loaded in the sandbox.
    from worker.sampling.serving.process import serve  # noqa: PLC0415

    serve(listener, control, options)
    sys.stdout.flush()
    os._exit(0)  # without waiting for a step that is being computed


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        int(sys.argv[2]),
        ServingOptions.model_validate_json(sys.argv[3]),
        Confinement.model_validate_json(sys.argv[4]) if len(sys.argv) > 4 else None,  # noqa: PLR2004
    )
