"""One service for most of these tests, with a model that it has tuned."""

from collections.abc import Iterator

import openai
import pytest

from tests.asking.questions import CALLING, EARLIER, STEPS
from tests.asking.reference import Reference, Tuned
from tests.asking.service import (
    AskedService,
    checksum_of,
    create_job,
    download_adapter,
    install_asked_model,
    name_of,
    rows_of,
    upload,
)


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AskedService]:
    data_dir = tmp_path_factory.mktemp("service") / "data"
    install_asked_model(data_dir, source=tmp_path_factory.mktemp("hub") / "our-tiny")
    with AskedService(data_dir, sampling="shared") as service:
        yield service


@pytest.fixture(scope="package")
def client(service: AskedService) -> Iterator[openai.OpenAI]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="package")
def tuned(
    service: AskedService, client: openai.OpenAI, tmp_path_factory: pytest.TempPathFactory
) -> Tuned:
    """A model that knows two answers: one in words, and one that is a call of a tool."""
    file_id = upload(client, rows_of("red") + 16 * [CALLING])
    job = create_job(client, file_id, max_steps=STEPS, checkpoint_steps=EARLIER)
    job = service.wait_for_end(client, job.id)
    base, directory = service.data_dir / "models" / "tiny", tmp_path_factory.mktemp("adapters")
    last = download_adapter(client, job.id, directory / "last")
    earlier = download_adapter(client, job.id, directory / "earlier", step=EARLIER)
    return Tuned(
        name_of(job),
        checksum_of(last),
        checksum_of(earlier),
        Reference(base, last),
        Reference(base, earlier),
        Reference(base, None),
    )
