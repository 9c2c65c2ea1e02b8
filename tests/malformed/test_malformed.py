"""Nothing that is sent is answered with a 500, keeps other clients waiting, or fills the memory."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.support.samples import write_catalogue
from benchmarks.uploads import peak_rss_bytes
from tests.effort import IS_LONG, effort
from tests.malformed.attack import RECEIVE_TIMEOUT_S, attack
from tests.malformed.corpus import FILES, Attack, corpus, malformed_bodies
from tests.malformed.probe import probing
from tests.malformed.slow_clients import outlast
from tests.malformed.wire import upload
from tunery.local_service import LocalService

MAX_PROBE_S = 0.1 if IS_LONG else 1.0
"""Time that another client may wait. In the short run, other tests use the processor as well."""

UPLOADS = 8
MEMORY_OF_UPLOADS_BYTES = 300 * 2**20
PATIENT_S = effort(2, long=20)
"""Time after which a slow client is cut off."""
SLOW_CLIENTS = effort(100, long=1000)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    data_dir = tmp_path_factory.mktemp("data")
    write_catalogue(data_dir)
    with start(data_dir, RECEIVE_TIMEOUT_S) as service:
        yield service


def start(data_dir: Path, receive_timeout_s: float) -> LocalService:
    settings = {"min_free_bytes": "0", "receive_timeout_s": str(receive_timeout_s)}
    return LocalService(data_dir, settings, workers=0)


def test_no_attack_is_answered_with_a_500_or_blocks_others(service: LocalService) -> None:
    bodies = malformed_bodies(effort(500, long=100_000))

    outcome = attack(service.url, itertools.chain(corpus(), bodies))

    service.check()
    assert outcome.failures == []
    assert outcome.probe.slowest_s < MAX_PROBE_S


def test_many_costly_uploads_at_once_take_bounded_memory(service: LocalService) -> None:
    request = upload(FILES["a million bad messages"])
    attacks = [Attack(f"upload {number}", request) for number in range(2 * UPLOADS)]
    pid = service.processes["api"].pid
    before = peak_rss_bytes(pid)

    outcome = attack(service.url, attacks, senders=UPLOADS)

    assert outcome.statuses == {400: 2 * UPLOADS}
    assert peak_rss_bytes(pid) - before < MEMORY_OF_UPLOADS_BYTES
    assert outcome.probe.slowest_s < MAX_PROBE_S


def test_slow_clients_are_cut_off_and_slow_nobody_down(tmp_path: Path) -> None:
    with start(tmp_path, PATIENT_S) as service:
        with probing(service.url) as usual:
            outlast(service.url, 1, patience_s=30)
        with probing(service.url) as attacked:
            lasted_s = outlast(service.url, SLOW_CLIENTS, patience_s=60)

    assert len(lasted_s) == SLOW_CLIENTS
    assert max(lasted_s) < PATIENT_S * 1.5
    assert attacked.p99_s < max(2 * usual.p99_s, MAX_PROBE_S / 10)


def test_the_corpus_has_at_least_500_attacks() -> None:
    names = [each.name for each in corpus()]

    assert len(names) == len(set(names))
    assert len(names) >= 500
