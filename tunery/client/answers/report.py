"""`tunery report`: how a tuned model and its base model answer, in scores and to read."""

from collections.abc import Iterator
from typing import Annotated

import typer

from app.core.errors import OperatorError
from tunery.client.answers.chat import HARMLESS
from tunery.client.options import AsJson, JobId, ProfileName, open_api
from tunery.client.screen.terminal import escape, print_json, print_table, say
from tunery.client.service.api import Json, job_path
from tunery.client.service.waiting import wait_until_made

_SCORES = {"exact_match": "exact match", "token_f1": "token F1", "valid_json": "valid JSON"}
_SOURCES = {
    "validation_file": "examples of the validation file",
    "validation_split": "examples that were held out",
}
_ENDINGS = {"length": " (cut at its maximum length)", None: " (not finished in time)"}


def report(
    job: JobId,
    *,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="Make the report again, and answer this prompt; up to five times.",
            metavar="TEXT",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Step or id of a checkpoint. Default: the result of the job."),
    ] = None,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Show how a tuned model and its base model answer. Waits until the report is made."""
    if prompt and checkpoint is not None:
        raise typer.BadParameter(
            "Only the result of a job answers other prompts. Leave --checkpoint out.",
            param_hint="--prompt",
        )
    api = open_api(profile)
    address = job_path(job, "report")

    def look() -> Json:
        return api.get(address, checkpoint=checkpoint)

    first = api.post(address, {"eval_prompts": prompt}) if prompt else look()
    made = wait_until_made(first, look, "both models answer")
    if made["error"] is not None:
        raise OperatorError(escape(f"There is no report: {made['error']['message']}"))
    if as_json:
        print_json(made)
        return
    _print(made["report"])


def _print(report: Json) -> None:
    if report["base"] and report["tuned"]:
        print_table(("SCORE", "BASE", "TUNED"), [*_score_rows(report)])
    if report["source"]:
        scored, examples = report["scored_examples"], report["examples"]
        say(f"{scored:,} of {examples:,} {_SOURCES[report['source']]} are scored.")
    if report["is_over_time"]:
        say("The time limit ended the report early.")
    for each in report["answers"]:
        typer.echo()
        _print_text("Prompt", each["prompt"])
        if each["refusal"] is not None:
            _print_text("Not answered", each["refusal"])
            continue
        if each["reference"] is not None:
            _print_text("Reference", each["reference"])
        for model in ("base", "tuned"):
            ending = _ENDINGS.get(each[model]["finish_reason"], "")
            _print_text(f"{model.capitalize()}{ending}", each[model]["text"])


def _score_rows(report: Json) -> Iterator[tuple[str, str, str]]:
    for name, title in _SCORES.items():
        if report["tuned"][name] is not None:
            yield title, f"{report['base'][name]:.1%}", f"{report['tuned'][name]:.1%}"


def _print_text(title: str, text: str) -> None:
    typer.echo(f"{title}: {escape(text, keep=HARMLESS)}")
