"""`python -m tests.chaos.worker`: the real worker, with a child that learns nothing, but fast.

With TUNERY_TEST_MUTATION=no-fence in its environment its writes name no attempt any more: what
the harness must notice.
"""

import os
import sys

from app.core.db.repositories import leases
from app.core.db.tables import Job
from worker.__main__ import main
from worker.attempt.lease_keeper import LeaseKeeper


def remove_fence() -> None:
    leases._is_held = lambda lease: (Job.id == lease.job_id,)
    LeaseKeeper.is_lost = property(lambda _self: False)


if __name__ == "__main__":
    if os.environ.get("TUNERY_CHAOS_MUTATION") == "no-fence":
        remove_fence()
    sys.exit(main("tests.chaos.stand_in_trainer"))
