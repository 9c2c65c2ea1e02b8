"""A service that offers everything."""

import pytest

from app.core.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With webhooks, which are off by default."""
    return settings.model_copy(update={"webhook_targets": "public"})
