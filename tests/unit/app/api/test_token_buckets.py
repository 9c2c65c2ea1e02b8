from app.api.admission.token_buckets import TokenBuckets


class Seconds:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_minutes_requests_may_come_at_once_and_then_evenly() -> None:
    seconds = Seconds()
    buckets = TokenBuckets(monotonic_s=seconds)
    first = [buckets.take("proj-a", per_minute=30) for _ in range(31)]
    seconds.now += 1.9
    too_early = buckets.take("proj-a", per_minute=30)
    seconds.now += 0.1
    later = [buckets.take("proj-a", per_minute=30) for _ in range(2)]

    assert first == [0] * 30 + [2]
    assert (too_early, later) == (1, [0, 2])


def test_a_bucket_never_holds_more_than_a_minute() -> None:
    seconds = Seconds()
    buckets = TokenBuckets(monotonic_s=seconds)
    buckets.take("proj-a", per_minute=2)
    seconds.now += 3600

    assert [buckets.take("proj-a", per_minute=2) for _ in range(3)] == [0, 0, 30]


def test_projects_do_not_share_tokens() -> None:
    buckets = TokenBuckets(monotonic_s=Seconds())

    assert [buckets.take(name, per_minute=1) for name in ("proj-a", "proj-b", "proj-a")] == [
        0,
        0,
        60,
    ]


def test_a_lower_limit_counts_at_once() -> None:
    buckets = TokenBuckets(monotonic_s=Seconds())
    buckets.take("proj-a", per_minute=100)

    assert [buckets.take("proj-a", per_minute=1) for _ in range(2)] == [0, 60]
