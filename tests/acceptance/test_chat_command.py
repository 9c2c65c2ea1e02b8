"""`tunery chat` in a terminal and in scripts, against a sampler without a model."""

import json
from collections.abc import Iterator

import pytest

from app.core.sampling.messages import Accepted, ChatPrompt, Delta, Finished, Refused
from tests.acceptance.client_command import COMMAND_S, Client
from tests.acceptance.processes import InstalledService
from tests.standin_sampler import Asked, Said, StandInSampler, repeat
from tests.terminal import CTRL_C

CTRL_D = b"\x04"
HOSTILE = "red\x1b[31mtitle\x1b]0;title\x07\r\u202e"


@pytest.fixture
def sampler(service: InstalledService) -> Iterator[StandInSampler]:
    with StandInSampler(service.data_dir / "sampler", answer) as sampler:
        yield sampler


def answer(asked: Asked) -> Iterator[Said]:
    """Say how many messages there were, and the last one again."""
    said = messages_of(asked)
    text = f"Of {len(said)}: {said[-1][1]}"
    yield Accepted(prompt_tokens=1, cached_tokens=0)
    yield Delta(choice=0, text=text[:4])
    yield Delta(choice=0, text=text[4:])
    yield Finished(choice=0, reason="stop", tokens=2)


def messages_of(asked: Asked) -> list[tuple[str, str]]:
    assert isinstance(asked.ask.prompt, ChatPrompt)
    return [(each["role"], each["content"]) for each in asked.ask.prompt.messages]


def say_and_wait(asked: Asked) -> Iterator[Said]:
    yield Accepted(prompt_tokens=1, cached_tokens=0)
    yield Delta(choice=0, text="Well,")
    asked.has_left.wait(COMMAND_S)


def test_a_prompt_gets_its_answer_and_nothing_else(tunery: Client, sampler: StandInSampler) -> None:
    settings = ("--temperature", "0.5", "--top-p", "0.9", "--max-tokens", "7", "--seed", "3")

    shown = tunery.run("chat", "tiny", "Hé?", "--system", "Be brief.", *settings, "--stop", "\n")

    assert shown == ("Of 2: Hé?\n", "")
    [asked] = sampler.asked
    assert messages_of(asked) == [("system", "Be brief."), ("user", "Hé?")]
    parameters = asked.ask.parameters
    assert (parameters.temperature, parameters.top_p, parameters.stop) == (0.5, 0.9, ("\n",))
    assert (parameters.max_tokens, parameters.seed) == (7, 3)


def test_a_pipe_is_a_prompt(tunery: Client, sampler: StandInSampler) -> None:
    assert tunery.run("chat", "tiny", piped="two\nlines") == ("Of 1: two\nlines\n", "")
    assert tunery.run("chat", "tiny", piped=" \n", code=2) == ("", "chat: The prompt is empty.\n")


def test_json_is_the_whole_answer(tunery: Client, sampler: StandInSampler) -> None:
    completion = tunery.read_json("chat", "tiny", "Hi")

    assert completion["object"] == "chat.completion"
    assert completion["choices"][0]["message"]["content"] == "Of 1: Hi"
    assert completion["usage"]["completion_tokens"] == 2


def test_an_answer_that_is_cut_off_is_told(tunery: Client, sampler: StandInSampler) -> None:
    sampler.script = repeat

    printed, said = tunery.run("chat", "tiny", "one two three", "--max-tokens", "2")

    assert (printed, said) == (
        "one two \n",
        "The answer was cut off at its maximum number of tokens.\n",
    )


def test_a_conversation_goes_on_after_an_answer_was_stopped(
    tunery: Client, sampler: StandInSampler
) -> None:
    with tunery.in_terminal("chat", "tiny") as terminal:
        terminal.wait_for("> $", within_s=COMMAND_S)
        terminal.press(b"Hello\n")
        terminal.wait_for(r"Of 1: Hello\r\n> $", within_s=COMMAND_S)
        sampler.script = say_and_wait
        terminal.press(b"Will it rain?\n")
        terminal.wait_for(r"Well,$", within_s=COMMAND_S)
        terminal.press(CTRL_C)
        terminal.wait_for(r"Stopped\.\r\n> $", within_s=COMMAND_S)
        assert sampler.asked[1].has_left.wait(COMMAND_S)
        sampler.script = answer
        terminal.press(b"Go on\n")
        terminal.wait_for(r"Of 5: Go on\r\n> $", within_s=COMMAND_S)
        terminal.press(CTRL_C)
        assert terminal.wait(within_s=COMMAND_S) == 130

    assert messages_of(sampler.asked[2])[-2:] == [("assistant", "Well,"), ("user", "Go on")]


def test_an_error_does_not_end_a_conversation(tunery: Client, sampler: StandInSampler) -> None:
    def refuse(_asked: Asked) -> Iterator[Said]:
        yield Refused(status=429, code="sampler_busy", message="A job is training.")

    with tunery.in_terminal("chat", "tiny") as terminal:
        terminal.wait_for("> $", within_s=COMMAND_S)
        sampler.script = refuse
        terminal.press(b"Now?\n")
        terminal.wait_for(r"A job is training\.\r\n> $", within_s=COMMAND_S)
        sampler.script = answer
        terminal.press(b"And now?\n")
        terminal.wait_for(r"Of 1: And now\?\r\n> $", within_s=COMMAND_S)
        terminal.press(CTRL_D)
        assert terminal.wait(within_s=COMMAND_S) == 0


def test_a_question_during_a_training_waits_for_its_end(
    tunery: Client, sampler: StandInSampler
) -> None:
    def refuse_once(_asked: Asked) -> Iterator[Said]:
        sampler.script = answer
        yield Refused(status=429, code="training_in_progress", message="A job is training.")

    sampler.script = refuse_once
    printed, said = tunery.run("chat", "tiny", "Now?")

    assert printed == "Of 1: Now?\n"
    assert said.startswith("A job trains, so the answer comes once it has ended.")
    assert said.count("\n") == 1


def test_what_a_model_says_does_not_control_the_terminal(
    tunery: Client, sampler: StandInSampler
) -> None:
    def attack(_asked: Asked) -> Iterator[Said]:
        yield Accepted(prompt_tokens=1, cached_tokens=0)
        yield Delta(choice=0, text=f"{HOSTILE}a\u00a0b\tc")
        yield Finished(choice=0, reason="stop", tokens=1)

    sampler.script = attack
    with tunery.in_terminal("chat", "tiny", "Hi") as terminal:
        assert terminal.wait(within_s=COMMAND_S) == 0

    assert "\x1b" not in terminal.output
    assert r"red\x1b[31mtitle\x1b]0;title\x07\r\u202e" in terminal.output
    assert "a\u00a0b" in terminal.output
    printed, _ = tunery.run("chat", "tiny", "Hi", "--json")
    assert json.loads(printed)["choices"][0]["message"]["content"].startswith(HOSTILE)


def test_refusals_end_with_their_exit_codes(tunery: Client, sampler: StandInSampler) -> None:
    def break_off(_asked: Asked) -> Iterator[Said]:
        yield Accepted(prompt_tokens=1, cached_tokens=0)
        yield Delta(choice=0, text="Well,")

    assert "no-such" in tunery.run("chat", "no-such", "Hi", code=2)[1]
    assert tunery.run("chat", "tiny", "Hi", "--temperature", "9", code=2)[1].startswith("chat: ")
    sampler.script = break_off
    printed, said = tunery.run("chat", "tiny", "Hi", code=3)
    assert printed == "Well,\n"
    assert said.startswith("chat: ")
    sampler.die()
    assert tunery.run("chat", "tiny", "Hi", code=3)[1].startswith("chat: ")


def test_a_conversation_with_no_model_does_not_begin(tunery: Client) -> None:
    with tunery.in_terminal("chat", "no-such") as terminal:
        assert terminal.wait(within_s=COMMAND_S) == 2

    assert "no-such" in terminal.text
