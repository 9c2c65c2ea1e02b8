import hypothesis.strategies as st
from hypothesis import given

from worker.sampling.decoding.text.stop_texts import StopTexts


def feed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    reader = StopTexts(stops)
    told = ""
    for piece in pieces:
        told += reader.add(piece)
        if reader.is_found:
            return told, True
    return told + reader.end(), False


@given(
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4),
    pieces=st.lists(st.text(alphabet="abc", max_size=3)),
)
def test_a_text_ends_before_the_stop_text_that_is_complete_first(
    stops: list[str], pieces: list[str]
) -> None:
    read = ""
    expected = "".join(pieces), False
    for piece in pieces:
        read += piece
        beginnings = [read.find(stop) for stop in stops if stop in read]
        if beginnings:
            expected = read[: min(beginnings)], True
            break

    assert feed(stops, pieces) == expected


@given(pieces=st.lists(st.text(alphabet="abc", max_size=3)))
def test_only_the_beginning_of_a_stop_text_is_held_back(pieces: list[str]) -> None:
    reader = StopTexts(["abc", "bb"])
    for piece in pieces:
        reader.add(piece)
        assert reader.held in ("", "a", "ab", "b")


def test_a_stop_text_may_span_pieces() -> None:
    reader = StopTexts(["END"])

    assert [reader.add(piece) for piece in ("so E", "N", "Z EN", "D!")] == ["so ", "", "ENZ ", ""]
    assert reader.is_found
