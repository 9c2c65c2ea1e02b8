"""`python -m tests.malformed.small_worker`: the real worker, where a process gets little memory.

Its training processes then run out of memory long before the machine does.
"""

import resource
import sys

from worker.__main__ import main

MEMORY_BYTES = 2 * 2**30

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    sys.exit(main())
