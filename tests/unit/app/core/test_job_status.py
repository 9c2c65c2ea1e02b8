from app.core.job.status import TRANSITIONS, JobStatus


def test_every_status_has_its_transitions() -> None:
    assert TRANSITIONS.keys() == set(JobStatus)


def test_a_job_that_has_ended_stays_as_it_is() -> None:
    ended = {status for status in JobStatus if status.is_terminal}

    assert ended == {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}


def test_every_status_but_one_is_known_to_the_openai_client() -> None:
    """It has calls to pause a job, but no word for what the job is then."""
    known = {"validating_files", "queued", "running", "succeeded", "failed", "cancelled"}

    assert {str(status) for status in JobStatus} - known == {"paused"}
