"""Answers to what is asked for many times a second."""

from fastapi import Response
from pydantic import BaseModel


def as_json(answer: BaseModel) -> Response:
    """What FastAPI makes of a model that a route returns, without checking it a second time.

    It would do that in one more change of threads, which takes longer than all the rest here. A
    route that answers so says in `response_model` what it answers.
    """
    return Response(answer.model_dump_json(by_alias=True), media_type="application/json")
