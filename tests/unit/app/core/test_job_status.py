from app.core.job_status import TRANSITIONS, JobStatus


def test_every_status_has_its_transitions() -> None:
    assert TRANSITIONS.keys() == set(JobStatus)


def test_a_job_that_has_ended_stays_as_it_is() -> None:
    ended = {status for status in JobStatus if status.is_terminal}

    assert ended == {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}


def test_every_status_is_one_that_the_openai_client_knows() -> None:
    known = {"validating_files", "queued", "running", "succeeded", "failed", "cancelled"}

    assert {str(status) for status in JobStatus} <= known
