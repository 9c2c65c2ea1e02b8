"""What is sent to a webhook endpoint: an event as OpenAI's, signed as Standard Webhooks.

Source: the Standard Webhooks specification, "Webhook Headers (Sending metadata to consumers)" and
"Signature scheme", https://github.com/standard-webhooks/standard-webhooks.
"""

import base64
import hmac
import json
import secrets
from collections.abc import Sequence
from datetime import datetime

from app.core.version import VERSION
from app.core.webhooks.events import WebhookEventType

_PREFIX = "whsec_"
_SECRET_BYTES = 32
_HINT_CHARACTERS = 4


def new_secret() -> str:
    """Create a signing secret: the prefix, and 256 random bits in base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def hint_of(secret: str) -> str:
    """Enough of a secret to recognize it, and too little to use it."""
    return f"{_PREFIX}...{secret[-_HINT_CHARACTERS:]}"


def build_body(
    event_id: str, event_type: WebhookEventType, job_id: str, *, happened_at: datetime
) -> bytes:
    """The event in JSON. It has the job's id and nothing else of the job."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": int(happened_at.timestamp()),
        "type": event_type,
        "data": {"id": job_id},
    }
    return json.dumps(event).encode()


def build_headers(
    event_id: str, body: bytes, signing_secrets: Sequence[str], *, now: datetime
) -> dict[str, str]:
    """The headers of one attempt. The time in them is that of the attempt, not of the event."""
    sent_at = int(now.timestamp())
    signed = f"{event_id}.{sent_at}.".encode() + body
    return {
        "content-type": "application/json",
        "user-agent": f"Tunery/{VERSION}",
        "webhook-id": event_id,
        "webhook-timestamp": str(sent_at),
        "webhook-signature": " ".join(_sign(signed, secret) for secret in signing_secrets),
    }


def _sign(signed: bytes, secret: str) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
