"""The events that a webhook endpoint can subscribe to; `docs/webhooks.md` explains them."""

from collections.abc import Mapping
from enum import StrEnum

from app.core.job.status import JobStatus


class WebhookEventType(StrEnum):
    SUCCEEDED = "fine_tuning.job.succeeded"
    FAILED = "fine_tuning.job.failed"
    CANCELLED = "fine_tuning.job.cancelled"

    # From here on, ours.
    RUNNING = "tunery.fine_tuning.job.running"
    PAUSED = "tunery.fine_tuning.job.paused"


EVENT_OF_STATUS: Mapping[JobStatus, WebhookEventType] = {
    JobStatus.SUCCEEDED: WebhookEventType.SUCCEEDED,
    JobStatus.FAILED: WebhookEventType.FAILED,
    JobStatus.CANCELLED: WebhookEventType.CANCELLED,
    JobStatus.RUNNING: WebhookEventType.RUNNING,
    JobStatus.PAUSED: WebhookEventType.PAUSED,
}
"""The event that says that a job has reached a status. A job that is new or queued has none."""
