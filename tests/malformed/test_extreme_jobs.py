"""A short form of `make extremes`."""

from collections.abc import Iterator

import pytest

from tests.effort import IS_LONG, effort
from tests.malformed.extreme_jobs import MAX_P99_S, send_extremes, small_service
from tests.malformed.out_of_memory import run_out_of_memory
from tunery.local_service import LocalService

REQUESTS = effort(80, long=1000)
P99_S = MAX_P99_S if IS_LONG else 0.5
"""In the short run, other tests use the processor as well."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    with small_service(tmp_path_factory.mktemp("data")) as service:
        yield service


def test_jobs_that_run_out_of_memory_say_so_and_slow_nobody_down(service: LocalService) -> None:
    shortage = run_out_of_memory(service)

    assert shortage.problems(max_p99_s=P99_S) == []


def test_an_extreme_job_is_refused_or_ends_within_its_limits(service: LocalService) -> None:
    findings = send_extremes(service, REQUESTS, seed=2)

    assert findings.problems == []
    assert findings.answers.total() == REQUESTS
    assert set(findings.answers) == {200, 400, 404}
    assert findings.ends["succeeded"] > 0
