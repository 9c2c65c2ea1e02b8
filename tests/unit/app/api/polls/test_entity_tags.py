"""A tag says whether two answers are the same, in every form that a client may send it."""

import pytest

from app.api.polls.entity_tags import entity_tag, lists_tag

TAG = entity_tag(b"{}")


def test_a_tag_is_that_of_its_body_alone() -> None:
    assert entity_tag(b"{}") == TAG
    assert entity_tag(b"{ }") != TAG
    assert TAG.startswith('"')
    assert TAG.endswith('"')


@pytest.mark.parametrize(
    "header", ["{}", "W/{}", '"other", {}', '"other" ,W/{} , "more"', "*", ' "other",* ']
)
def test_a_tag_is_found_among_others(header: str) -> None:
    assert lists_tag(header.format(TAG), TAG)


@pytest.mark.parametrize("header", ["", '"other"', TAG[1:-1], TAG.upper(), f"w/{TAG}", '"*"', ","])
def test_another_tag_is_not_the_same(header: str) -> None:
    assert not lists_tag(header, TAG)
