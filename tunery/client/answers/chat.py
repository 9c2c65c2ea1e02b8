"""`tunery chat`: talks to a model in a terminal, or asks it once in a script."""

import json
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from importlib import import_module
from typing import Annotated
from urllib.parse import quote

import typer

from app.core.errors import OperatorError
from tunery.client.options import AsJson, ProfileName, open_api
from tunery.client.screen.terminal import escape, print_json, say
from tunery.client.service.api import Api, AwayError, Json, RefusedError
from tunery.client.service.profile import choose_profile
from tunery.client.service.server_events import read_events
from tunery.client.watch import INTERRUPTED

_COMPLETIONS = "/chat/completions"
_LAST_EVENT = "[DONE]"

_TRAINING = "training_in_progress"
_PAUSE_S = 1.0
"""Pause before a model is asked again that does not answer while a job trains, in seconds."""

HARMLESS = "\n\t\u00a0\u2009\u202f\u3000\u200c\u200d"
"""What does not print and yet belongs to text: line feeds, spaces, and joiners of letters and
emoji."""


def _complete_model(incomplete: str) -> Iterator[str]:
    """Yield the models of the service; none on an error."""
    with suppress(OperatorError):
        models = Api(choose_profile(None), is_hurried=True).get("/models")["data"]
        yield from (model["id"] for model in models if model["id"].startswith(incomplete))


def chat(
    model: Annotated[
        str,
        typer.Argument(
            help="Base model, tuned model or checkpoint.",
            metavar="MODEL",
            autocompletion=_complete_model,
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(help="Ask this and leave. Default: what a pipe brings.", metavar="[PROMPT]"),
    ] = None,
    *,
    system: Annotated[
        str | None, typer.Option(help="System prompt, which comes before everything.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 for the most likely token each time.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Only the most likely tokens, up to this probability.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens of an answer.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes an answer repeatable.")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text at which an answer ends; can be repeated.", metavar="TEXT"),
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Talk to a model, or print its answer to a prompt. Ctrl-C stops an answer."""
    given = {
        "model": model,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "stop": stop or None,
    }
    request = {name: value for name, value in given.items() if value is not None}
    api = open_api(profile)
    conversation = _Conversation(api, request, system, as_json=as_json)
    if prompt is None and not sys.stdin.isatty():
        prompt = _read_pipe()
    if prompt is None:
        api.get(f"/models/{quote(model)}")  # tells at once if there is none
        _talk(conversation)
    elif not prompt.strip():
        raise OperatorError("The prompt is empty.")
    else:
        try:
            conversation.ask(prompt)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


class _Conversation:
    """What was said to a model, and by it."""

    def __init__(self, api: Api, request: Json, system: str | None, *, as_json: bool) -> None:
        self._api = api
        self._request = request
        self._messages: list[Json] = [{"role": "system", "content": system}] if system else []
        self._as_json = as_json

    def ask(self, prompt: str) -> None:
        """Print the answer while it comes. The next questions come after it, however it ended.

        Raises:
            RefusedError: the service refuses the request.
            AwayError: the service is busy or away, or the answer broke off.
        """
        question = {"role": "user", "content": prompt}
        request = {**self._request, "messages": [*self._messages, question]}
        said: list[str] = []
        print_answer = self._print_json if self._as_json else self._print_pieces
        try:
            self._print_when_free(print_answer, request, said)
        finally:
            if said:
                answer = {"role": "assistant", "content": "".join(said)}
                self._messages += [question, answer]

    def _print_when_free(
        self, print_answer: Callable[[Json, list[str]], None], request: Json, said: list[str]
    ) -> None:
        """Print the answer, once no job trains that the sampler leaves the machine to."""
        is_told = False
        while True:
            try:
                return print_answer(request, said)
            except AwayError as error:
                if said or error.code != _TRAINING:
                    raise
            if not is_told:
                say("A job trains, so the answer comes once it has ended. Ctrl-C ends the waiting.")
                is_told = True
            time.sleep(_PAUSE_S)

    def _print_json(self, request: Json, said: list[str]) -> None:
        completion = self._api.post(_COMPLETIONS, request)
        print_json(completion)
        said.append(completion["choices"][0]["message"]["content"] or "")

    def _print_pieces(self, request: Json, said: list[str]) -> None:
        """Print the answer as it comes, and put its pieces into `said`."""
        reason = None
        try:
            with closing(_stream(self._api, request)) as choices:
                for choice in choices:
                    reason = choice.get("finish_reason") or reason
                    delta: Json = choice["delta"]
                    if text := delta.get("content"):
                        said.append(text)
                        sys.stdout.write(escape(text, keep=HARMLESS))
                        sys.stdout.flush()
        finally:
            if said:
                typer.echo()
        if reason == "length":
            say("The answer was cut off at its maximum number of tokens.")


def _stream(api: Api, request: Json) -> Generator[Json]:
    """Yield the pieces of an answer as they come.

    Raises:
        AwayError: the answer broke off.
    """
    with api.stream(_COMPLETIONS, body={**request, "stream": True}) as response:
        for event in read_events(response):
            if event.data == _LAST_EVENT:
                return
            chunk: Json = json.loads(event.data)
            if "error" in chunk:
                problem: Json = chunk["error"]
                raise AwayError(escape(str(problem["message"])), code=problem.get("code") or "")
            yield from chunk["choices"]
    raise AwayError("The answer broke off.")


def _talk(conversation: _Conversation) -> None:
    """Ask whatever is typed, until Ctrl-D, or Ctrl-C while nothing is being answered.

    Raises:
        typer.Exit: the user has pressed Ctrl-C.
    """
    with suppress(ImportError):
        import_module("readline")  # makes `input` edit lines
    say("Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            prompt = _read_line()
        except EOFError:
            typer.echo(err=True)
            return
        except KeyboardInterrupt:
            typer.echo(err=True)
            raise typer.Exit(INTERRUPTED) from None
        if not prompt.strip():
            continue
        try:
            conversation.ask(prompt)
        except KeyboardInterrupt:
            say("Stopped.")
        except (RefusedError, AwayError) as error:
            typer.echo(str(error), err=True)


def _read_line() -> str:
    if sys.stdout.isatty():
        return input("> ")
    typer.echo("> ", err=True, nl=False)  # standard output has the answers alone
    return input()


def _read_pipe() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise OperatorError("Standard input is not UTF-8.") from error
