"""/v1/chat/completions, /v1/completions and /v1/responses: what base and tuned models say."""

from typing import Any

from fastapi import APIRouter, Response

from app.api.access import needs
from app.api.live.answers import STREAMED
from app.api.sampling.answering import AnsweringDep
from app.api.sampling.chat import ChatWriter
from app.api.sampling.completions import CompletionWriter
from app.api.sampling.engine_route import EngineRoute
from app.api.sampling.responses import ResponseWriter
from app.core.access import Scope
from app.schemas.bodies import ErrorRead
from app.schemas.sampling.chat import ChatCompletionCreate, ChatCompletionRead
from app.schemas.sampling.completions import CompletionCreate, CompletionRead
from app.schemas.sampling.responses import ResponseCreate, ResponseRead
from app.services.sampling.prompts import plan_chat, plan_completion, plan_response

_ANSWERS: dict[int | str, dict[str, Any]] = {
    **STREAMED,
    502: {"model": ErrorRead, "description": "The engine that answers for the model has failed."},
}

router = APIRouter(tags=["sampling"], route_class=EngineRoute, dependencies=[needs(Scope.SAMPLE)])


@router.post("/chat/completions", response_model=ChatCompletionRead, responses=_ANSWERS)
async def create_chat_completion(body: ChatCompletionCreate, answering: AnsweringDep) -> Response:
    """Answer a conversation with a base model, a tuned model or a checkpoint."""
    plan = plan_chat(body)
    model = await answering.find_model(body.model)
    writer = ChatWriter(body, model, plan.forced_tool)
    return await answering.answer(plan, model, writer, is_streamed=body.stream)


@router.post("/completions", response_model=CompletionRead, responses=_ANSWERS)
async def create_completion(body: CompletionCreate, answering: AnsweringDep) -> Response:
    """Go on with a text as it is, without a chat template."""
    plan = plan_completion(body)
    model = await answering.find_model(body.model)
    writer = CompletionWriter(body, model)
    return await answering.answer(plan, model, writer, is_streamed=body.stream)


@router.post("/responses", response_model=ResponseRead, responses=_ANSWERS)
async def create_response(body: ResponseCreate, answering: AnsweringDep) -> Response:
    """Answer a text or a list of messages, in OpenAI's newest form. No answer is kept."""
    plan = plan_response(body)
    model = await answering.find_model(body.model)
    writer = ResponseWriter(body, model)
    return await answering.answer(plan, model, writer, is_streamed=body.stream)
