"""The page that asks models side by side: answers as they come, and what stands in their way."""

import re
import threading
from collections.abc import Iterator
from secrets import token_hex
from typing import Literal

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob
from playwright.sync_api import Browser, Locator, Page, expect

from app.core.access import Scope
from app.core.sampling.messages import Accepted, ChatPrompt, Delta, Finished, Refused
from tests.browser.job_page import create_job, path_of, wait_for
from tests.browser.members import Member, database_of, fill_in_key, watched_tabs
from tests.browser.watching import Tabs, find_barriers, scrolls_sideways
from tests.builders import add_key
from tests.standin_sampler import Asked, Said, StandInSampler, repeat
from tunery.local_service import LocalService

SCRIPT = "<script>alert(1)</script>"
SIGN_IN = """key => fetch("v1/session", {
    method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify({key}),
}).then(({ok}) => { if (!ok) throw Error("not signed in"); })"""
"""As another tab signs in."""


@pytest.fixture(scope="module")
def job(client: openai.OpenAI) -> FineTuningJob:
    """A job with a result and an earlier checkpoint, at step 5."""
    return wait_for(client, create_job(client, "asked", checkpoint_steps=5), "succeeded")


@pytest.fixture(scope="module")
def tuned(job: FineTuningJob) -> str:
    assert job.fine_tuned_model
    return job.fine_tuned_model


@pytest.fixture
def sampler(service: LocalService) -> Iterator[StandInSampler]:
    with StandInSampler(service.data_dir / "sampler", introduce) as sampler:
        yield sampler


@pytest.fixture
def keyed_sampler(keyed_service: LocalService) -> Iterator[None]:
    with StandInSampler(keyed_service.data_dir / "sampler", introduce):
        yield


def introduce(asked: Asked) -> Iterator[Said]:
    """Say which model this is, and how many messages it has got."""
    assert isinstance(asked.ask.prompt, ChatPrompt)
    name = "tuned" if asked.ask.adapter else "base"
    words = f"I am {name} and was told {len(asked.ask.prompt.messages)} messages.".split(" ")
    yield Accepted(prompt_tokens=9, cached_tokens=0)
    for place, word in enumerate(words):
        yield Delta(choice=0, text=f" {word}" if place else word)
    yield Finished(choice=0, reason="stop", tokens=len(words))


class Gate:
    """Says one word, and the rest when the test says so."""

    def __init__(self) -> None:
        self.is_open = threading.Event()

    def __call__(self, asked: Asked) -> Iterator[Said]:
        yield Accepted(prompt_tokens=1, cached_tokens=0)
        yield Delta(choice=0, text="Well,")
        self.is_open.wait(20)
        yield Delta(choice=0, text=" yes.")
        yield Finished(choice=0, reason="length", tokens=2)


def refuse_for_now(_asked: Asked) -> Iterator[Said]:
    message = "A job is training. Ask again when it has ended."
    yield Refused(status=429, code="sampler_busy", message=message, retry_after_s=2)


def try_path(*models: str) -> str:
    return f"/try?models={','.join(models)}"


def message_box(page: Page) -> Locator:
    return page.locator("#composer textarea")


def ask(page: Page, text: str) -> None:
    message_box(page).fill(text)
    page.keyboard.press("Control+Enter")


def words(page: Page) -> Locator:
    """The texts of all answers, in the order of the page."""
    return page.locator(".answer .words")


def expect_answers(page: Page, *texts: str | re.Pattern[str]) -> None:
    expect(words(page)).to_have_text([*texts])


def test_base_and_tuned_model_answer_side_by_side(
    tabs: Tabs, sampler: StandInSampler, tuned: str
) -> None:
    page = tabs.open(try_path("tiny", tuned))
    page.get_by_label("System prompt").fill("Be brief.")

    ask(page, "Who are you?")
    first = ["I am base and was told 2 messages.", "I am tuned and was told 2 messages."]
    expect_answers(page, *first)
    expect(page.get_by_role("status").filter(has_text="8 tokens")).to_have_count(2)
    ask(page, "And now?")
    second = ["I am base and was told 4 messages.", "I am tuned and was told 4 messages."]
    expect_answers(page, *first, *second)

    told = [asked.ask.prompt.messages for asked in sampler.asked[2:] if asked.ask.adapter]  # pyright: ignore[reportAttributeAccessIssue]
    assert [
        [(message["role"], message["content"]) for message in messages] for messages in told
    ] == [
        [
            ("system", "Be brief."),
            ("user", "Who are you?"),
            ("assistant", first[1]),
            ("user", "And now?"),
        ]
    ]


def test_an_answer_is_shown_while_it_is_written(tabs: Tabs, sampler: StandInSampler) -> None:
    sampler.script = gate = Gate()
    page = tabs.open(try_path("tiny"))
    ask(page, "Will it rain?")

    expect_answers(page, "Well,")
    expect(page.get_by_role("status").first).to_have_text("Writing…")
    gate.is_open.set()

    expect_answers(page, "Well, yes.")
    expect(page.locator(".answer")).to_contain_text("Cut off at the maximum number of tokens.")
    expect(page.locator(".answer")).to_contain_text(re.compile(r"2 tokens, \d.* to the first"))


@pytest.mark.parametrize("how", ["click", "Escape"])
def test_an_answer_is_stopped_and_asked_for_again(
    tabs: Tabs, sampler: StandInSampler, how: str
) -> None:
    sampler.script = gate = Gate()
    page = tabs.open(try_path("tiny"))
    ask(page, "Will it rain?")
    expect_answers(page, "Well,")

    if how == "click":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press(how)
    expect(page.locator(".answer")).to_contain_text("Stopped.")
    assert sampler.asked[0].has_left.wait(20)
    gate.is_open.set()
    expect_answers(page, "Well,")

    sampler.script = introduce
    page.get_by_role("button", name="Ask again").click()
    expect_answers(page, "I am base and was told 1 messages.")


def test_settings_are_sent_and_shown_as_a_call(tabs: Tabs, sampler: StandInSampler) -> None:
    page = tabs.open(try_path("tiny"))
    for label, text in (
        ("Temperature", "0.5"),
        ("Top p", "0.9"),
        ("Maximum tokens", "7"),
        ("Seed", "3"),
        ("Stop", r"\n,END"),
    ):
        page.get_by_label(label).fill(text)
    message_box(page).fill('It\'s "late"')

    call = page.get_by_label("The call")
    expect(call).to_contain_text('"temperature": 0.5')
    expect(call).to_contain_text("/v1/chat/completions")
    page.get_by_role("button", name="Python").click()
    expect(call).to_contain_text("client.chat.completions.create(")
    expect(call).to_contain_text(r'"content": "It' + "'" + r's \"late\"",')
    page.get_by_role("button", name="Send").click()

    expect(words(page)).to_have_count(1)
    parameters = sampler.asked[0].ask.parameters
    assert (parameters.temperature, parameters.top_p) == (0.5, 0.9)
    assert (parameters.max_tokens, parameters.seed) == (7, 3)
    assert parameters.stop == ("\n", "END")


def test_a_wrong_setting_is_told_and_nothing_is_sent(tabs: Tabs, sampler: StandInSampler) -> None:
    page = tabs.open(try_path("tiny"))
    page.get_by_label("Temperature").fill("hot")
    expect(page.get_by_text("“hot” is not a number.")).to_be_visible()

    ask(page, "Anything?")

    expect(page.get_by_label("Temperature")).to_be_focused()
    expect(message_box(page)).to_have_value("Anything?")
    assert sampler.asked == []


def test_what_a_model_says_is_never_html(tabs: Tabs, sampler: StandInSampler) -> None:
    sampler.script = repeat
    page = tabs.open(try_path("tiny"))
    ask(page, f"{SCRIPT} <b>bold</b>")

    expect_answers(page, f"{SCRIPT} <b>bold</b> ")
    expect(page.locator("main script, .answer b")).to_have_count(0)


def test_a_model_that_waits_for_a_training_is_asked_again(
    tabs: Tabs, sampler: StandInSampler
) -> None:
    sampler.script = refuse_for_now
    page = tabs.open(try_path("tiny"))
    ask(page, "Now?")

    expect(page.locator(".answer .notice")).to_contain_text("A job is training.")
    expect(page.locator(".answer")).to_contain_text(re.compile(r"Asks again in [12] s\."))
    sampler.script = repeat
    expect_answers(page, "Now? ")
    tabs.forgive("429")


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(
    tabs: Tabs, sampler: StandInSampler
) -> None:
    message = "The prompt has 900 tokens, and the window of tiny has 512."

    def refuse(_asked: Asked) -> Iterator[Said]:
        yield Refused(status=400, code="context_length_exceeded", message=message)

    sampler.script = refuse
    page = tabs.open(try_path("tiny"))
    ask(page, "Long")

    expect(page.locator(".answer .problem")).to_have_text(message)
    sampler.script = introduce
    page.get_by_role("button", name="New conversation").click()
    ask(page, "Short")
    expect_answers(page, "I am base and was told 1 messages.")
    tabs.forgive("400")


def test_without_a_sampler_the_page_says_so(tabs: Tabs) -> None:
    page = tabs.open(try_path("tiny"))
    ask(page, "Hello?")

    expect(page.locator(".answer [role=alert]")).to_contain_text("sampl")
    tabs.forgive("503")


def test_a_reload_keeps_the_conversation(tabs: Tabs, sampler: StandInSampler, tuned: str) -> None:
    page = tabs.open(try_path("tiny", tuned))
    page.get_by_label("Seed").fill("5")
    ask(page, "Who are you?")
    expect(page.get_by_role("status").filter(has_text="8 tokens")).to_have_count(2)
    message_box(page).fill("half a tho")

    page.reload()
    expect_answers(page, re.compile("I am base"), re.compile("I am tuned"))
    expect(page.get_by_label("Seed")).to_have_value("5")
    expect(message_box(page)).to_have_value("half a tho")
    page.goto("/try")
    expect(page.get_by_label("Model 2")).to_have_value(tuned)

    page.goto(try_path(f"{tuned}:ckpt-step-5"))
    expect(page.get_by_label("Model 1")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(0)


def ask_something(page: Page) -> None:
    page.get_by_label("System prompt").fill("Be secret.")
    ask(page, "Who are you?")
    expect_answers(page, "I am base and was told 2 messages.")
    message_box(page).fill("half a tho")


def expect_nothing_kept(page: Page) -> None:
    expect(page.get_by_label("System prompt")).to_have_value("")
    expect(message_box(page)).to_have_value("")
    expect(page.locator(".answer")).to_have_count(0)


def test_signing_out_forgets_the_conversation(member: Member, keyed_sampler: None) -> None:
    page = member.sign_in(try_path("tiny"))
    ask_something(page)

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0

    page.goto(f"/sign-in?next={try_path('tiny').removeprefix('/')}")
    fill_in_key(page, member.key)
    expect_nothing_kept(page)


def test_another_project_in_the_tab_does_not_see_the_conversation(
    member: Member, keyed_sampler: None
) -> None:
    page = member.sign_in(try_path("tiny"))
    ask_something(page)

    key = add_key(member.database, f"project-{token_hex(8)}")
    page.evaluate(SIGN_IN, key)
    page.reload()
    expect_nothing_kept(page)


def test_checkpoints_are_chosen_added_and_removed(
    tabs: Tabs, sampler: StandInSampler, tuned: str
) -> None:
    checkpoint = f"{tuned}:ckpt-step-5"
    page = tabs.open(try_path("tiny", tuned))

    page.get_by_label("Model 1").select_option(checkpoint)
    page.get_by_role("button", name="Add a model").click()
    page.get_by_label("Model 3").select_option("tiny")
    expect(page).to_have_url(re.compile("tiny$"))
    ask(page, "Who?")
    expect(page.locator(".answer h3")).to_have_text([checkpoint, tuned, "tiny"])
    expect(words(page)).to_have_count(3)

    page.get_by_role("button", name=f"Remove {checkpoint}").click()
    expect(page.locator(".answer h3")).to_have_text([tuned, "tiny"])
    expect(page.get_by_label("Model 1")).to_have_value(tuned)
    expect(page.get_by_label("Model 2")).to_have_value("tiny")


def test_a_model_that_there_is_not_is_named(tabs: Tabs) -> None:
    page = tabs.open(try_path("ft:tiny:tunery:gone:1"))

    expect(page.locator("main .wrong")).to_contain_text("ft:tiny:tunery:gone:1")
    tabs.forgive("404")


def test_other_pages_lead_here(
    tabs: Tabs, sampler: StandInSampler, job: FineTuningJob, tuned: str
) -> None:
    page = tabs.open(path_of(job.id))
    page.get_by_role("link", name="Try it").click()
    expect(page.get_by_label("Model 2")).to_have_value(tuned)
    page.go_back()
    page.get_by_role("link", name="Try step 5").click()
    expect(page.get_by_label("Model 2")).to_have_value(f"{tuned}:ckpt-step-5")

    page.get_by_role("link", name="Models", exact=True).click()
    page.get_by_role("link", name=f"Try {tuned}").click()
    expect(page.get_by_label("Model 1")).to_have_value("tiny")


def test_a_question_is_asked_by_keyboard_alone(tabs: Tabs, sampler: StandInSampler) -> None:
    page = tabs.open(try_path("tiny"))
    message = message_box(page)
    expect(message).to_be_visible()
    for _ in range(40):
        page.keyboard.press("Tab")
        if message.evaluate("(field) => field === document.activeElement"):
            break
    page.keyboard.type("One line")
    page.keyboard.press("Enter")
    page.keyboard.type("and another")
    assert sampler.asked == []
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    expect_answers(page, "I am base and was told 1 messages.")
    [asked] = sampler.asked
    assert isinstance(asked.ask.prompt, ChatPrompt)
    assert asked.ask.prompt.messages[0]["content"] == "One line\nand another"
    expect(page.get_by_role("button", name="Send")).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_ask(
    tabs: Tabs, sampler: StandInSampler, tuned: str, theme: Literal["light", "dark"]
) -> None:
    sampler.script = repeat
    page = tabs.open(try_path("tiny", tuned), theme=theme, width=320)
    ask(page, f"{'long' * 60} and short")
    expect(page.get_by_role("status").filter(has_text="3 tokens")).to_have_count(2)

    assert find_barriers(page) == []
    assert not scrolls_sideways(page)


def test_a_key_that_may_not_sample_is_told(browser: Browser, keyed_service: LocalService) -> None:
    with database_of(keyed_service) as database:
        key = add_key(database, scopes=[Scope.READ])
    with watched_tabs(browser, keyed_service) as tabs:
        page = tabs.open("/sign-in?next=try")
        fill_in_key(page, key)

        expect(page.get_by_text("needs a key with the scope sample")).to_be_visible()
        expect(page.get_by_role("link", name="Try", exact=True)).to_have_count(0)
