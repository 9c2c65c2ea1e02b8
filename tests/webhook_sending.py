"""What a process of a test does to send webhooks. It imports little, so that it starts soon."""

from datetime import datetime

from app.core.db.session import Database
from app.webhooks.client import WebhookClient
from app.webhooks.sender import Sender
from app.webhooks.targets import TargetPolicy

LOOPBACK = "127.0.0.0/8"


def send_all(url: str, origin: str, now: datetime) -> int:
    """Send all that is due at a given time. Returns the number of attempts."""
    database = Database(url)
    client = WebhookClient(TargetPolicy(origin, LOOPBACK))
    sender = Sender(database, client, clock=lambda: now)
    attempts = 0
    while sender.send_next():
        attempts += 1
    database.dispose()
    return attempts
