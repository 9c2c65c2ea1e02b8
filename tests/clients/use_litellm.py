"""litellm against a running service; `tests/acceptance/test_other_clients.py` runs it.

Its working directory has the example of `docs/clients.md`. It has an environment of its own, so
nothing of this project can be imported here.
"""

import functools
import os
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import waits for the network

import litellm  # pyright: ignore[reportMissingImports] - of its own environment
from tap import run_tests  # pyright: ignore[reportMissingImports] - beside this script

litellm.suppress_debug_info = True

FINISHED_JOB = os.environ["FINISHED_JOB"]
QUESTION = [{"role": "user", "content": "Who are you?"}]
SERVICE: dict[str, Any] = {
    "custom_llm_provider": "openai",
    "api_base": os.environ["TUNERY_BASE_URL"],
    "api_key": "unused",
    "max_retries": 0,
}
LINES = b"".join(b'{"text": "After %d comes %d."}\n' % (n, n + 1) for n in range(4))
TERMINAL = ("succeeded", "failed", "cancelled")


def upload(content: bytes = LINES) -> Any:
    return litellm.create_file(file=("train.jsonl", content), purpose="fine-tune", **SERVICE)


def wait_for_end(job_id: str) -> Any:
    while True:
        job = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job_id, **SERVICE)
        if job.status in TERMINAL:
            return job
        time.sleep(0.1)


def refusal_of(act: Callable[[], object]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


def test_a_file_is_uploaded_found_read_and_deleted() -> None:
    file = upload()

    assert (file.filename, file.bytes, file.status) == ("train.jsonl", len(LINES), "processed")
    assert litellm.file_retrieve(file_id=file.id, **SERVICE).id == file.id
    listed = litellm.file_list(purpose="fine-tune", **SERVICE)
    assert file.id in [one.id for one in listed.data]
    assert litellm.file_content(file_id=file.id, **SERVICE).content == LINES
    assert litellm.file_delete(file_id=file.id, **SERVICE).deleted is True


@functools.cache
def tune() -> Any:
    """A job that has ended, once it was found in the list."""
    job = litellm.create_fine_tuning_job(
        model="tiny",
        training_file=upload().id,
        hyperparameters={"n_epochs": 1},
        suffix="from litellm",
        **SERVICE,
    )
    listed = litellm.list_fine_tuning_jobs(limit=5, **SERVICE)
    assert job.id in [one.id for one in listed.data]
    return wait_for_end(job.id)


def test_a_job_is_created_listed_and_succeeds() -> None:
    done = tune()

    assert (done.status, done.object) == ("succeeded", "fine_tuning.job")
    assert done.fine_tuned_model.startswith("ft:tiny:tunery:from-litellm:")


def test_a_job_is_cancelled() -> None:
    job = litellm.create_fine_tuning_job(
        model="tiny",
        training_file=upload(LINES * 500).id,
        hyperparameters={"n_epochs": 50},
        **SERVICE,
    )

    litellm.cancel_fine_tuning_job(fine_tuning_job_id=job.id, **SERVICE)

    assert wait_for_end(job.id).status == "cancelled"


def test_a_finished_job_is_read_with_its_loss_log() -> None:
    job = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=FINISHED_JOB, **SERVICE)

    assert (job.status, job.seed, job.hyperparameters.n_epochs) == ("succeeded", 42, 2)
    log = litellm.file_content(file_id=job.result_files[0], **SERVICE).content
    assert log.startswith(b"step,train_loss,")


def test_errors_keep_their_status_and_their_words() -> None:
    for act, status, words in (
        (lambda: upload(b"[]\n"), 400, "The file is not a dataset. In line 1:"),
        (
            lambda: litellm.retrieve_fine_tuning_job(fine_tuning_job_id="ftjob-1", **SERVICE),
            404,
            "ftjob-1",
        ),
    ):
        refusal = refusal_of(act)
        assert getattr(refusal, "status_code", None) == status, repr(refusal)
        assert words in str(refusal), repr(refusal)


def test_the_model_that_was_tuned_is_asked() -> None:
    model = tune().fine_tuned_model

    answer = litellm.completion(model=model, messages=QUESTION, max_tokens=2, **SERVICE)

    assert answer.model == model
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Who are ", "length")
    assert answer.usage.completion_tokens == 2


def test_an_answer_is_streamed() -> None:
    model = tune().fine_tuned_model

    chunks = litellm.completion(model=model, messages=QUESTION, stream=True, **SERVICE)

    pieces = [chunk.choices[0].delta.content for chunk in chunks]
    assert [piece for piece in pieces if piece] == ["Who ", "are ", "you? "]


def test_the_example_that_is_told_only_the_base_url() -> None:
    shown = runpy.run_path("litellm-example.py")

    model, answer = shown["job"].fine_tuned_model, shown["answer"]
    assert model.startswith("ft:tiny:tunery:"), shown["job"]
    assert answer.model.removeprefix("openai/") == model
    assert answer.choices[0].message.content == "Who are you? "


sys.exit(run_tests(globals()))
