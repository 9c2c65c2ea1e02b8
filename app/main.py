"""Builds the HTTP application from its parts."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi_offline import FastAPIOffline

from app.api import health
from app.api.access import require_policies
from app.api.admission.authentication import Authenticator
from app.api.admission.guard import Guard
from app.api.admission.token_buckets import TokenBuckets
from app.api.browser import dashboard, docs_page
from app.api.deps import Resources
from app.api.errors import install_error_handlers
from app.api.live.hub import Hub
from app.api.metrics import RequestMetrics
from app.api.observed_store import ObservedStore
from app.api.polls.memory import Memory
from app.api.polls.recent_answers import RecentAnswers
from app.api.polls.repeats import Repeats
from app.api.requests import RequestContext
from app.api.sampling.engines import Engines
from app.api.sampling.slots import SamplingSlots
from app.api.upload_slots import UploadSlots
from app.api.v1 import (
    file_preview,
    files,
    fine_tuning_jobs,
    job_adapters,
    job_estimates,
    job_reports,
    job_results,
    models,
    sampling,
    sessions,
    sweeps,
    uploads,
    webhooks,
)
from app.api.v1.organization import api_keys, projects, service
from app.core.base_models import load_catalogue
from app.core.clock import utc_now
from app.core.dataset.tokenizing.processes import TokenizerProcesses
from app.core.db.migrate import upgrade
from app.core.db.repositories.machines.server_clock import ServerClock
from app.core.db.session import Database
from app.core.disk import Ballast
from app.core.orphans import free_files
from app.core.sampling.engines import parse_engines
from app.core.settings import Settings, read_settings
from app.core.storage.blob_store import BlobStore
from app.core.storage.opening import open_store
from app.core.stored_models.local_models import LocalModels
from app.core.version import VERSION
from app.maintenance.doctor import Checkups
from app.maintenance.worker_watch import WorkerWatch
from app.schemas.bodies import ErrorRead
from app.webhooks.client import WebhookClient
from app.webhooks.sender import Sender
from app.webhooks.targets import TargetPolicy

_FREE_INTERVAL_S = 3600.0
"""Interval at which the API frees what is left behind on its machine, in seconds."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorRead, "description": description}
    for status, description in {
        400: "The request is invalid or cannot be granted in the current state.",
        401: "A valid API key is missing.",
        403: "The API key lacks the scope for this request.",
        404: "What the request names does not exist.",
        413: "The body is too large.",
        415: "The body has the wrong media type.",
        429: "A limit of the project is reached.",
        500: "The server failed unexpectedly.",
        503: "The database or the store of files is busy or away. Try again.",
        507: "The disk is full.",
    }.items()
}


def create_app(
    settings: Settings | None = None,
    *,
    database: Database | None = None,
    store: BlobStore | None = None,
) -> FastAPI:
    """The API on the data directory, the database and the store that `settings` name.

    Args:
        settings: by default, those of the environment.
        database: by default, opened here. It is closed when the application ends.
        store: by default, opened here. Whether it belongs to the database is then not checked.
    """
    settings = settings or read_settings()
    database = database or Database(settings.resolved_database_url)
    metrics = RequestMetrics()
    store = ObservedStore(store or open_store(settings), metrics)
    catalogue = load_catalogue(settings.data_dir)
    resources = Resources(
        settings=settings,
        database=database,
        store=store,
        catalogue=catalogue,
        models=LocalModels(catalogue, database, store, spare_bytes=settings.min_free_bytes),
        ballast=Ballast(settings),
        upload_slots=UploadSlots(settings.max_uploads),
        tokenizers=TokenizerProcesses(),
        webhooks=WebhookClient(TargetPolicy.of(settings)),
        checkups=Checkups(settings, database, store),
    )
    app = FastAPIOffline(
        docs_url=None,  # `docs_page` has the page
        redoc_url=None,
        static_url=docs_page.ASSETS,
        title="Tunery",
        version=VERSION,
        description="Fine-tune language models over REST: OpenAI's fine-tuning API, self-hosted.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=_lifespan,
        redirect_slashes=False,
        responses=_ERRORS,
    )
    app.state.resources = resources
    app.state.metrics = metrics
    app.state.store = store
    app.state.hub = Hub(resources.database, metrics, max_connections=settings.max_connections)
    app.state.sampling_slots = SamplingSlots(metrics, max_connections=settings.max_connections)
    app.state.engines = Engines(parse_engines(settings.sampling_engines.get_secret_value()))
    install_error_handlers(app)
    app.include_router(health.router)
    app.include_router(docs_page.router)
    app.include_router(dashboard.router)
    jobs = (fine_tuning_jobs, job_estimates, job_results, job_reports, job_adapters, sweeps)
    admin = (projects, api_keys, service)
    data = (files, file_preview, uploads)
    for module in (*data, *jobs, models, sampling, webhooks, *admin, sessions):
        app.include_router(module.router, prefix="/v1")
    require_policies(app)
    authenticator = Authenticator(resources, may_be_keyless=settings.may_be_keyless)
    buckets = TokenBuckets()
    memory = Memory(database.version)
    repeats = Repeats(memory, authenticator=authenticator, buckets=buckets, metrics=metrics)
    app.state.authenticator, app.state.repeats = authenticator, repeats
    app.add_middleware(RecentAnswers, repeats=repeats)
    app.add_middleware(
        Guard,
        authenticator=authenticator,
        buckets=buckets,
        hosts=settings.host_names,
        organization=settings.organization,
    )
    # The middleware added last sees a request first.
    app.add_middleware(RequestContext, metrics=metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    resources: Resources = app.state.resources
    upgrade(resources.database)
    sender = Sender(resources.database, resources.webhooks, clock=utc_now)
    authenticator: Authenticator = app.state.authenticator
    sending = sender.running() if resources.webhooks.policy.is_on else nullcontext()
    clock = partial(ServerClock().read, resources.database)
    watching = WorkerWatch(resources.database, clock=clock).running()
    freeing = asyncio.create_task(_free_hourly(resources))
    try:
        async with (
            contextmanager_in_threadpool(watching),
            contextmanager_in_threadpool(sending),  # at its end it waits for attempts
        ):
            yield
        app.state.repeats.close()
        hub: Hub = app.state.hub
        await hub.close()
        engines: Engines = app.state.engines
        await engines.close()
        await authenticator.close()
    finally:
        freeing.cancel()
        resources.database.dispose()


async def _free_hourly(resources: Resources) -> None:
    """Free what is left behind on the API's machine, which may have no worker that does."""
    while True:
        with suppress(OSError):  # it is tried again
            await asyncio.to_thread(free_files, resources.store, resources.settings)
        await asyncio.sleep(_FREE_INTERVAL_S)
