"""Checks and unpacks an archive in a process of its own, with limits on memory, time and space.

It is told what to do in one `Import` as JSON, and prints an `Answer`:

    python -m app.core.adapter_files.check IMPORT
"""

import os
import resource
import sys

from app.core.adapter_files.archive import ImportRefusedError, open_archive
from app.core.adapter_files.config import read_config
from app.core.adapter_files.process import CPU_S, MEMORY_BYTES, Answer, Import
from app.core.adapter_files.weights import copy_weights

_NICENESS = 10
"""So that the API, which answers others meanwhile, is scheduled first."""


def check_import(request: Import) -> Answer:
    """Check an archive, and copy the weights out of it."""
    try:
        with open_archive(request.archive) as archive:
            shape = read_config(
                archive.config, target_modules=request.target_modules, max_rank=request.max_rank
            )
            copy_weights(
                archive.weights,
                request.weights,
                declared_bytes=archive.weights_bytes,
                shape=shape,
                base_model=request.base_model,
            )
    except ImportRefusedError as error:
        return Answer(refused=str(error))
    except (MemoryError, RecursionError):
        return Answer(refused="The archive needs too much memory to be read.")
    return Answer(shape=shape)


def main(arguments: list[str]) -> None:
    request = Import.model_validate_json(arguments[0])
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (request.max_bytes, request.max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(check_import(request).model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1:])
