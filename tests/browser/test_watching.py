"""The harness itself: it sees each kind of fault, so that the other tests mean something."""

import pytest

from tests.browser.watching import Tabs, find_barriers


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("console.error('a console error')", "error: a console error"),
        ("setTimeout(() => { throw new Error('a script error') })", "a script error"),
        ("document.body.setAttribute('style', 'color: red')", "policy: style-src"),
        ("fetch('v1/nothing').then(() => {})", "404"),
        ("fetch('http://127.0.0.1:9/').catch(() => {})", "policy: connect-src"),
    ],
)
def test_a_fault_is_noted(tabs: Tabs, script: str, expected: str) -> None:
    page = tabs.open("/docs")

    page.evaluate(f"() => {{ {script} }}")
    with page.expect_event("console", predicate=lambda message: message.text == "last"):
        page.evaluate("() => setTimeout(() => console.log('last'), 200)")

    assert any(expected in fault for fault in tabs.faults)
    tabs.faults.clear()


def test_axe_finds_a_barrier(tabs: Tabs) -> None:
    page = tabs.open("/docs")

    page.evaluate("() => document.body.append(document.createElement('button'))")

    assert any(barrier.startswith("button-name") for barrier in find_barriers(page))
