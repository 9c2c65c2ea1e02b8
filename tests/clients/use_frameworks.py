"""instructor, dspy and llama-index against a running service, told nothing but its base URL.

`tests/acceptance/test_other_clients.py` runs it, with the examples of `docs/clients.md` in the
working directory. It has an environment of its own, so nothing of this project can be imported
here.
"""

import os
import runpy
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import waits for the network

# pyright: reportMissingImports=false
from llama_index.core.llms import ChatMessage
from tap import run_tests

QUESTION = "Who are you?"


def run_example(name: str) -> dict[str, Any]:
    """Run an example, and return its variables."""
    return runpy.run_path(f"{name}-example.py")


def name_of(job: Any) -> str:
    """The name of the model that a job has made."""
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model.startswith("ft:tiny:tunery:"), job
    return job.fine_tuned_model


def test_instructor_gets_an_object_from_the_model_that_was_tuned() -> None:
    shown = run_example("instructor")

    assert (shown["keeper"].name, shown["keeper"].age) == ("Tamsin", 40)
    assert shown["answer"].model == name_of(shown["job"])
    [choice] = shown["answer"].choices
    assert choice.finish_reason == "tool_calls"


def test_dspy_tunes_a_model_and_asks_it() -> None:
    shown = run_example("dspy")

    assert shown["name"].startswith("ft:tiny:tunery:"), shown["name"]
    assert shown["answer"] == "Tamsin"


def test_llama_index_asks_the_model_that_was_tuned_and_streams() -> None:
    shown = run_example("llama-index")
    llm = shown["llm"]

    assert shown["answer"].message.content == "Who are you? "
    assert shown["answer"].raw.model == name_of(shown["job"])
    question = [ChatMessage(role="user", content=QUESTION)]
    deltas = [piece.delta for piece in llm.stream_chat(question)]
    assert [delta for delta in deltas if delta] == ["Who ", "are ", "you? "]
    assert llm.complete(QUESTION).text == "Who are you? "


sys.exit(run_tests(globals()))
