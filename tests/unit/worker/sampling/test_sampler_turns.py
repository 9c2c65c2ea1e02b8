"""Who is next, who has to leave, and how much each reads in a step."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from app.core.sampling.messages import MAX_CHOICES, Accepted, Ask, Refused, TextPrompt
from worker.sampling.serving.batch import share_step
from worker.sampling.serving.desk import MAX_ANSWERS, TURN_S, Desk
from worker.sampling.serving.pace import (
    FEWEST,
    MOST,
    SHARE_BESIDE_TRAINING,
    STEP_S,
    Pace,
    rest_after,
)
from worker.sampling.serving.requests import Request, Told
from worker.sampling.serving.waiting import MAX_OF_PROJECT, WaitingLine


class Heard:
    """An outlet that keeps what it gets."""

    def __init__(self) -> None:
        self.answers: list[Told] = []
        self.is_over = False

    def send(self, answers: Sequence[Told], *, is_last: bool) -> None:
        assert not self.is_over
        self.answers += answers
        self.is_over = is_last


def build_request(project: str = "a", *, choices: int = 1) -> Request:
    ask = Ask(
        project_id=project,
        base_model=Path("/models/tiny"),
        base_model_sha256="b" * 64,
        prompt=TextPrompt(text="Once"),
        choices=choices,
    )
    return Request(ask, (), Heard())


def any_request(request: Request) -> bool:
    del request
    return True


def code_of(request: Request) -> str | None:
    assert isinstance(request.outlet, Heard)
    last = request.outlet.answers[-1] if request.outlet.answers else None
    return last.code if isinstance(last, Refused) else None


def test_the_project_with_the_fewest_answers_is_next() -> None:
    line = WaitingLine()
    a1, a2, b1 = build_request("a"), build_request("a"), build_request("b")
    for request in (a1, a2, b1):
        line.add(request, limit=9)

    assert line.take(4, {}, any_request) is a1
    assert line.take(4, {"a": 1}, any_request) is b1
    assert line.take(4, {"a": 1, "b": 1}, any_request) is a2


def test_a_request_for_many_answers_is_not_overtaken() -> None:
    line = WaitingLine()
    many = build_request("a", choices=4)
    line.add(many, limit=9)
    line.add(build_request("b"), limit=9)

    assert line.take(3, {}, any_request) is None
    assert line.take(4, {}, any_request) is many


def test_a_project_that_has_as_many_answers_as_it_may_is_passed_over() -> None:
    line = WaitingLine()
    many, few, other = build_request("a", choices=2), build_request("a"), build_request("b")
    for request in (many, few, other):
        line.add(request, limit=9)
    running = {"a": MAX_OF_PROJECT - 1, "b": MAX_OF_PROJECT}

    assert line.take(4, running, any_request) is None
    assert line.take(4, {**running, "b": 3}, any_request) is other
    assert line.take(4, {"a": MAX_OF_PROJECT - 2}, any_request) is many


def test_what_one_thread_leaves_another_one_takes_without_being_held_up() -> None:
    line = WaitingLine()
    slow, quick = build_request("a"), build_request("b")
    line.add(slow, limit=9)
    line.add(quick, limit=9)

    assert line.take(4, {}, lambda each: each is not slow) is quick
    assert line.take(4, {}, lambda each: each is slow) is slow


def test_a_project_leaves_room_for_the_answers_of_others() -> None:
    desk = Desk(queue=9, mode="idle")
    for _ in range(MAX_ANSWERS):
        desk.submit(build_request("a"))
    while desk.take(any_request):
        pass
    other = build_request("b", choices=MAX_CHOICES)
    desk.submit(other)

    assert desk.take(any_request) is other


def test_a_client_that_leaves_makes_room_before_its_request_has_ended() -> None:
    desk = Desk(queue=9, mode="idle")
    requests = [build_request() for _ in range(MAX_OF_PROJECT + 1)]
    for request in requests:
        desk.submit(request)
    *taken, last = requests
    for request in taken:
        assert desk.take(any_request) is request
    desk.cancel(taken[0])

    assert taken[0].is_stopped
    assert desk.take(any_request) is last


def test_a_project_that_has_waited_for_long_gets_room_from_the_one_with_the_most_answers() -> None:
    desk = Desk(queue=9, mode="idle", turn_s=0)
    largest = [build_request("a") for _ in range(MAX_OF_PROJECT)]
    small, waiting = build_request("b", choices=MAX_CHOICES), build_request("c")
    for request in (*largest, small):
        desk.submit(request)
        assert desk.take(any_request) is request
    desk.submit(waiting)
    desk.collect(waits=False)
    desk.collect(waits=False)

    assert [each for each in (*largest, small) if each.is_stopped] == largest[:1]
    assert desk.take(any_request) is waiting
    largest[0].end()
    assert code_of(largest[0]) == "sampler_busy"


@pytest.mark.parametrize(
    ("project", "turn_s"),
    [
        pytest.param("b", 0, id="has answers"),
        pytest.param("c", TURN_S, id="has not waited for long"),
    ],
)
def test_nobody_makes_room_for_a_project_that(project: str, turn_s: float) -> None:
    desk = Desk(queue=9, mode="idle", turn_s=turn_s)
    taken = [build_request("a") for _ in range(MAX_OF_PROJECT)]
    taken.append(build_request("b", choices=MAX_CHOICES))
    for request in taken:
        desk.submit(request)
        assert desk.take(any_request) is request
    desk.submit(build_request(project))
    desk.collect(waits=False)

    assert not any(each.is_stopped for each in taken)


def test_a_request_that_is_put_back_is_the_next_one() -> None:
    desk = Desk(queue=9, mode="idle")
    first, second = build_request(), build_request()
    desk.submit(first)
    desk.submit(second)
    assert desk.take(any_request) is first
    desk.put_back(first)

    assert desk.take(any_request) is first


def test_a_request_that_is_put_back_ends_if_its_client_has_left() -> None:
    desk = Desk(queue=9, mode="idle")
    request = build_request()
    desk.submit(request)
    assert desk.take(any_request) is request
    desk.cancel(request)
    desk.put_back(request)

    assert request.has_ended


def test_training_stops_what_is_being_prepared_when_the_grace_period_is_over() -> None:
    desk = Desk(queue=9, mode="idle", grace_s=0)
    request = build_request()
    desk.submit(request)
    assert desk.take(any_request) is request
    desk.set_training(True)
    desk.collect(waits=False)
    request.end()

    assert code_of(request) == "training_in_progress"


def test_a_project_cannot_take_all_the_room_to_wait() -> None:
    line = WaitingLine()
    oldest, newest = build_request("a"), build_request("a")
    line.add(oldest, limit=2)
    line.add(newest, limit=2)
    other, another = build_request("b"), build_request("b")

    assert line.add(other, limit=2) is newest
    assert line.add(another, limit=2) is another


def test_more_than_may_wait_are_told_to_come_back() -> None:
    desk = Desk(queue=1, mode="idle")
    requests = [build_request() for _ in range(MAX_OF_PROJECT + 2)]
    for request in requests:
        desk.submit(request)

    assert [code_of(request) for request in requests] == [None] * (MAX_OF_PROJECT + 1) + [
        "sampler_busy"
    ]


@pytest.mark.parametrize(("mode", "code"), [("idle", "training_in_progress"), ("shared", None)])
def test_training_sends_away_who_waits_unless_the_machine_is_shared(
    mode: str, code: str | None
) -> None:
    desk = Desk(queue=1, mode="shared" if mode == "shared" else "idle")
    before, after = build_request(), build_request()
    desk.submit(before)
    desk.set_training(True)
    desk.submit(after)

    assert (code_of(before), code_of(after)) == (code, code)


def test_a_request_has_one_end() -> None:
    request = build_request()
    request.end(Refused(status=500, code="a", message="a"))
    request.tell(Accepted(prompt_tokens=1, cached_tokens=0))
    request.end()

    assert isinstance(request.outlet, Heard)
    assert len(request.outlet.answers) == 1


@pytest.mark.parametrize(
    ("pending", "budget", "shares"),
    [
        pytest.param([1, 1], 16, [1, 1], id="answers alone"),
        pytest.param([1, 900], 256, [1, 256], id="a long prompt beside an answer"),
        pytest.param([900, 900], 256, [128, 128], id="two long prompts"),
        pytest.param([10, 900], 256, [10, 246], id="a short prompt leaves its rest"),
        pytest.param([900] * 20, 16, [1] * 20, id="more prompts than tokens"),
    ],
)
def test_prompts_share_what_is_read_in_a_step(
    pending: list[int], budget: int, shares: list[int]
) -> None:
    assert share_step(pending, budget) == shares


def test_a_step_takes_as_many_tokens_as_the_machine_reads_in_its_time() -> None:
    pace = Pace(threads=1)
    assert pace.budget == FEWEST

    for _ in range(30):
        pace.note(100, 100 * STEP_S / 50)
    assert pace.budget == pytest.approx(50, abs=1)
    for _ in range(60):
        pace.note(100, 1e-6)
    assert pace.budget == MOST


def test_beside_a_training_the_sampler_rests_for_most_of_the_time() -> None:
    assert rest_after(0.1, trains=False) == 0
    assert 0.1 / (0.1 + rest_after(0.1, trains=True)) == pytest.approx(SHARE_BESIDE_TRAINING)
