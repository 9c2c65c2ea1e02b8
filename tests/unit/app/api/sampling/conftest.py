"""A sampler without a model, and models that it answers for."""

from collections.abc import Iterator

import pytest

from app.core.db.session import Database
from app.core.db.tables import Job
from app.core.settings import Settings
from app.core.storage.local import LocalBlobStore
from tests.builders import add_succeeded_job, build_result_file, list_checkpoints
from tests.standin_sampler import StandInSampler


@pytest.fixture
def sampler(settings: Settings) -> Iterator[StandInSampler]:
    with StandInSampler(settings.sampler_dir) as sampler:
        yield sampler


@pytest.fixture
def tuned(database: Database, store: LocalBlobStore) -> Job:
    """A job with a model, and with checkpoints at step 1 and step 6."""
    job = add_succeeded_job(database, store, steps=(1, 6))
    for checkpoint in list_checkpoints(database, job.id):
        config = build_result_file(store, job, "adapter_config.json", f'{{"r": {checkpoint.step}}}')
        config.checkpoint_id = checkpoint.id
        with database.writing() as session:
            session.add(config)
    return job
