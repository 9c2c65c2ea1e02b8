"""Which rows a preview shows."""

import pytest

from app.core.dataset.tokenizing.messages import MAX_ROWS
from app.core.errors import InvalidRequestError
from app.services.tokenizing import read_rows


@pytest.mark.parametrize(
    ("text", "examples", "expected"),
    [
        (None, 100, (1, 2, 3, 4, 5)),
        (None, 2, (1, 2)),
        ("3", 3, (3,)),
        ("1,5,10-12", 100, (1, 5, 10, 11, 12)),
        ("7, 2, 2-3", 100, (2, 3, 7)),
        (f"1-{MAX_ROWS}", 100, tuple(range(1, MAX_ROWS + 1))),
    ],
)
def test_rows_are_numbers_and_ranges(
    text: str | None, examples: int, expected: tuple[int, ...]
) -> None:
    assert read_rows(text, examples=examples) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'rows' has ''"),
        ("0", "'rows' has '0'"),
        ("3-1", "'rows' has '3-1'"),
        ("1,", "'rows' has ''"),
        ("-1", "'rows' has '-1'"),
        ("1.5", "'rows' has '1.5'"),
        ("\u0663", "'rows' has"),
        ("1" * 20, "'rows' has"),
        ("1-999999999", f"more than {MAX_ROWS} rows"),
        ("1-30,1-30", f"more than {MAX_ROWS} rows"),
        ("11", "The file has 10 rows, so there is no row 11."),
    ],
)
def test_anything_else_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        read_rows(text, examples=10)

    assert caught.value.param == "rows"
