"""Base classes of tables and repositories, names of constraints, and types of columns."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, Literal, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    DateTime,
    Delete,
    Dialect,
    Enum,
    ForeignKey,
    MetaData,
    Select,
    TypeDecorator,
    Update,
    delete,
    select,
    union_all,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    InstrumentedAttribute,
    Mapped,
    Session,
    mapped_column,
)

from app.core.job.status import JobStatus


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime. SQLite drops the time zone; PostgreSQL returns the session's own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.utcoffset() is None:
            raise ValueError("A naive datetime has no place in the database.")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value and value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
        JobStatus: Enum(
            JobStatus, native_enum=False, length=20, create_constraint=True, values_callable=list
        ),
    }


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True, index=True)
    created_at: Mapped[datetime]
    last_turn: Mapped[int] = mapped_column(BigInteger, default=0, index=True)
    """Number of the turn at which a worker last took one of its jobs. The latest is the highest."""
    erasing_since: Mapped[datetime | None]
    """When its erasure began: no job of it is started any more. Null unless it is being erased."""
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Limits, and how long things are kept: `app.schemas.organization.projects` describes them."""
    max_queued_jobs: Mapped[int | None]
    max_running_jobs: Mapped[int | None]
    max_processor_hours: Mapped[float | None]
    max_duration_s: Mapped[int | None]
    max_requests_per_minute: Mapped[int | None]
    file_retention_days: Mapped[int | None]
    job_retention_days: Mapped[int | None]
    event_retention_days: Mapped[int | None]


class Installation(Base):
    """What belongs to this database and is kept elsewhere. The table has one row."""

    __tablename__ = "installation"
    __table_args__ = (CheckConstraint("id = 1", name="is_one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    store_id: Mapped[str | None]
    """Id that the blob store has in its marker. Null before the first start."""
    target_store_id: Mapped[str | None]
    """Id of the store that `tunery store copy` copies to, before the service moves there."""
    previous_store_id: Mapped[str | None]
    """Id of the store that the service has used before."""
    previous_state: Mapped[str | None]
    """open, closed or copied: see decision 0059. Null if the service has never moved."""
    moved_at: Mapped[datetime | None]
    """When the service began to use its store. Null if it has never moved."""
    is_store_marked: Mapped[bool]
    """Whether the marker was seen in the store. Until then it may be missing there."""
    signing_key: Mapped[str | None]
    """Id of the public key that belongs to the service's private key. Null before it is made."""


class OwnedByProject:
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))


Order = Literal["asc", "desc"]
Row = TypeVar("Row")
OwnedRow = TypeVar("OwnedRow", bound=OwnedByProject)


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    rows: list[Row]
    has_more: bool


class Repository:
    """Queries of one transaction, over all projects."""

    def __init__(self, session: Session) -> None:
        self._session = session


class ProjectRepository:
    """Queries of one transaction, on the rows of one project.

    Every query on a table of the project begins with `_select`, `_update` or `_delete`, which
    leave out the rows of other projects. Queries over all projects derive from `Repository`.
    """

    def __init__(self, session: Session, project_id: str) -> None:
        self._session = session
        self._project_id = project_id

    def _select(self, table: type[OwnedRow]) -> Select[OwnedRow]:
        return select(table).where(table.project_id == self._project_id)

    def _update(self, table: type[OwnedByProject]) -> Update:
        return update(table).where(table.project_id == self._project_id)

    def _delete(self, table: type[OwnedByProject]) -> Delete:
        return delete(table).where(table.project_id == self._project_id)

    def _add(self, *rows: OwnedByProject) -> None:
        for row in rows:
            row.project_id = self._project_id
        self._session.add_all(rows)
        self._session.flush()

    def _fetch_page(
        self,
        query: Select[Row],
        id_column: ColumnElement[str] | InstrumentedAttribute[str],
        *,
        after: str | None,
        limit: int,
        order: Order = "desc",
    ) -> Page[Row]:
        """Up to `limit` rows after the id `after`, whose own row may have been deleted.

        Ids sort by time.
        """
        query = _page_query(query, id_column, after=after, limit=limit, order=order)
        rows = list(self._session.scalars(query))
        return Page(rows[:limit], has_more=len(rows) > limit)


def merge_pages(
    queries: Iterable[Select[str]],
    id_column: InstrumentedAttribute[str],
    *,
    after: str | None,
    limit: int,
    order: Order,
) -> tuple[Select[str], ColumnElement[str]]:
    """Find the ids of a page of several queries for ids together. They have no row in common.

    Returns:
        A query for ids among which those of the page are, and its column.
    """
    pages = (
        _page_query(each, id_column, after=after, limit=limit, order=order).subquery()
        for each in queries
    )
    ids = union_all(*(select(page.c.id) for page in pages)).subquery()
    return select(ids.c.id), ids.c.id


def _page_query(
    query: Select[Row],
    id_column: ColumnElement[str] | InstrumentedAttribute[str],
    *,
    after: str | None,
    limit: int,
    order: Order,
) -> Select[Row]:
    """The rows of a page, and one more if there is another page."""
    if after is not None:
        query = query.where(id_column > after if order == "asc" else id_column < after)
    by: ColumnElement[Any] = id_column.asc() if order == "asc" else id_column.desc()
    return query.order_by(by).limit(limit + 1)
