"""Tables of what may be done: the keys of each project."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.base import Base, OwnedByProject


class ApiKey(OwnedByProject, Base):
    """An API key. The key itself is shown once, when it is created."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    """When it stops working; null if it does not expire."""
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Time of its last use, to the minute."""
