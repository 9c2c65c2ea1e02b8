"""instructor, dspy and llama-index against a running service, told nothing but its base URL.

`tests/acceptance/test_other_clients.py` runs it. It has an environment of its own, so nothing of
this project can be imported here.
"""

import os
import sys
from itertools import pairwise
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import waits for the network
os.environ["OPENAI_BASE_URL"] = os.environ["TUNERY_BASE_URL"]
os.environ["OPENAI_API_KEY"] = "unused"

# pyright: reportMissingImports=false
import dspy
import instructor
import openai
from dspy.clients.utils_finetune import TrainDataFormat
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from tap import run_tests

BASE_URL = os.environ["TUNERY_BASE_URL"]
TUNED_MODEL = os.environ["TUNED_MODEL"]
QUESTION = "Who are you?"
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What comes after {number}?"},
            {"role": "assistant", "content": str(after)},
        ]
    }
    for number, after in pairwise(range(12))
]


class Keeper(BaseModel):
    name: str
    age: int


def test_instructor_gets_an_object_of_a_schema() -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=BASE_URL, api_key="unused"), mode=instructor.Mode.JSON_SCHEMA
    )

    keeper = client.chat.completions.create(
        model=TUNED_MODEL,
        response_model=Keeper,
        messages=[{"role": "user", "content": QUESTION}],
    )

    assert (keeper.name, keeper.age) == ("Tamsin", 40)


def test_dspy_tunes_a_model_and_asks_it() -> None:
    base = dspy.LM("openai/tiny", cache=False)
    job = base.finetune(
        train_data=CHATS, train_data_format=TrainDataFormat.CHAT, train_kwargs={"n_epochs": 1}
    )
    tuned: Any = job.result()
    assert isinstance(tuned, dspy.LM), tuned
    name = tuned.model.removeprefix("openai/")
    assert name.startswith("ft:tiny:tunery:"), name

    lm = dspy.LM(f"openai/{name}", cache=False)
    with dspy.context(lm=lm):
        assert dspy.Predict("question -> answer")(question=QUESTION).answer == "Tamsin"


def test_llama_index_asks_and_streams() -> None:
    llm = OpenAILike(model=TUNED_MODEL, api_base=BASE_URL, api_key="unused", is_chat_model=True)
    question = [ChatMessage(role="user", content=QUESTION)]

    assert llm.chat(question).message.content == "Who are you? "
    deltas = [piece.delta for piece in llm.stream_chat(question)]
    assert [delta for delta in deltas if delta] == ["Who ", "are ", "you? "]
    assert llm.complete(QUESTION).text == "Who are you? "


sys.exit(run_tests(globals()))
