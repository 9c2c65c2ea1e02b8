from tests.bad_data.fuzz import run
from tests.effort import effort


def test_mutated_files_break_no_promise_of_the_checks() -> None:
    outcomes = run(seed=1, seconds=240, count=effort(500, long=20_000))

    assert {"accepted", "refused", "Parquet survived"} <= outcomes.keys()
