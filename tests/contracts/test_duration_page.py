"""The page on durations is that of the estimate."""

from benchmarks.durations import PAGE, write_page


def test_the_page_on_durations_agrees_with_the_estimate() -> None:
    is_current = write_page() == PAGE.read_text("utf-8")
    assert is_current, "Run `python -m benchmarks.durations` and commit the change."
