"""The table of the installation, which has one row."""

from datetime import datetime

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.base import Base

ONLY_ID = 1
"""Primary key of the only row."""


class Installation(Base):
    """All that the processes of an installation must agree on. The migration makes its row."""

    __tablename__ = "installation"
    __table_args__ = (CheckConstraint(f"id = {ONLY_ID}", name="only_one"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    store_id: Mapped[str | None]
    """Id of the store that blobs are put into. Null before the first start."""
    signing_key: Mapped[str | None]
    """Id of the public key that signs manifests. Null before the first start."""
    target_store_id: Mapped[str | None]
    """Id of the store that `tunery store copy` copies to, before the installation moves there."""
    previous_store_id: Mapped[str | None]
    """Id of the store that the installation has used before."""
    previous_state: Mapped[str | None]
    """open, closed or copied; null if there was no other store."""
    moved_at: Mapped[datetime | None]
    """When the installation began to use the present store; null if it has never moved."""
