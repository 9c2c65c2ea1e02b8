"""/v1/files/{id}/preview: rows of a dataset as a base model will see them."""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.api.access import PolicyRoute, needs
from app.api.blob_reading import open_for_process
from app.api.deps import CallerDep, Now, ResourcesDep, as_json
from app.api.leaving import CLIENT_CLOSED_REQUEST, ClientLeftError, unless_client_leaves
from app.core.access import Scope
from app.core.dataset.tokenizing.messages import MAX_ROWS, Preview
from app.core.dataset.tokenizing.preview_text import write_preview
from app.core.db.session import Session
from app.core.job.training_config import OverlongRowBehavior, TrainingConfig, TrainOn
from app.schemas.files import PreviewRead
from app.services.tokenizing import AskedPreview, PreviewPlan, plan_preview

router = APIRouter(prefix="/files/{file_id}", tags=["files"], route_class=PolicyRoute)

_JSON, _TEXT = "application/json", "text/plain"
_FIELDS = TrainingConfig.model_fields


def _read_hyperparameters(
    context_length: Annotated[
        int | None,
        Query(ge=16, le=131_072, description=_FIELDS["max_sequence_tokens"].description),
    ] = None,
    overlong_row_behavior: Annotated[
        OverlongRowBehavior | None, Query(description=_FIELDS["overlong_row_behavior"].description)
    ] = None,
    train_on: Annotated[TrainOn | None, Query(description=_FIELDS["train_on"].description)] = None,
) -> dict[str, Any]:
    given = {
        "context_length": context_length,
        "overlong_row_behavior": overlong_row_behavior,
        "train_on": train_on,
    }
    return {name: value for name, value in given.items() if value is not None}


@router.get(
    "/preview",
    response_model=PreviewRead,
    responses={200: {"content": {_TEXT: {}}}},
    dependencies=[needs(Scope.READ)],
)
async def preview_file(
    request: Request,
    file_id: str,
    caller: CallerDep,
    resources: ResourcesDep,
    now: Now,
    hyperparameters: Annotated[dict[str, Any], Depends(_read_hyperparameters)],
    model: Annotated[str, Query(description="Model whose tokenizer reads the rows.")],
    rows: Annotated[
        str | None,
        Query(
            max_length=1000,
            description="Numbers of rows, from 1, and ranges of them, such as `1,5,10-20`: at most "
            f"{MAX_ROWS} rows. The default is the first 5.",
        ),
    ] = None,
    accept: Annotated[str, Header(description="Media type of the answer.")] = _JSON,
    *,
    colour: Annotated[
        bool,
        Query(description="Whether text has colours. Without them, brackets mark what is learned."),
    ] = True,
) -> Response:
    """Show rows of a dataset as a job would train on them: every token, and whether it is learned.

    The hyperparameters have the meaning and the defaults that they have in a job. With the header
    `Accept: text/plain`, the answer is text for a terminal.
    """
    asked = AskedPreview(file_id, model, rows, hyperparameters)

    def plan(session: Session) -> PreviewPlan:
        return plan_preview(
            session,
            caller,
            asked,
            settings=resources.settings,
            catalogue=resources.catalogue,
            now=now,
        )

    def write(preview: Preview) -> Response:
        if _TEXT in accept and _JSON not in accept:
            lines = write_preview(preview, has_colours=colour)
            return Response("".join(f"{line}\n" for line in lines), media_type=_TEXT)
        return as_json(PreviewRead(file_id=file_id, model=model, **dict(preview)))

    planned = await to_thread.run_sync(resources.read, plan)
    with await to_thread.run_sync(open_for_process, resources, planned.blob) as source:
        placed = await resources.with_base_model(planned.request, planned.base_model)
        work = resources.tokenizers.ask(placed, [source], Preview)
        try:
            preview = await unless_client_leaves(request, work)
        except ClientLeftError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
    return await to_thread.run_sync(write, preview)
