"""`report.md`: a report as text, beside the model card of the adapter that it is about."""

import re
from collections.abc import Iterable

from app.core.job.scores.report import AnswerPair, AnswerReport, Scores

REPORT_CARD_NAME = "report.md"
"""Made when an adapter is downloaded, so no manifest lists it and no signature covers it."""

_CARD = """\
# Before and after: {model}

Greedy answers of the base model `{base}` and of `{model}`. The service adds this file when
the adapter is downloaded; the signature of the adapter does not cover it.
{scores}{answers}"""

_SCORES = """
## Scores

Means over {scored} of the {examples} examples of the {source}. Tunery's `docs/jobs.md` defines each
score.

| score | base model | tuned model |
|---|---|---|
{rows}
"""

_ANSWERS = """
## Answers

{answers}
"""

_SOURCES = {
    "validation_file": "validation file",
    "validation_split": "part of the training file that was held out",
}


def write_report_card(report: AnswerReport, *, base: str, model: str) -> str:
    """The report as Markdown.

    Args:
        report: the report.
        base: name of the base model.
        model: name of the tuned model.
    """
    answers = "\n\n".join(map(_show, report.answers))
    return _CARD.format(
        base=base,
        model=model,
        scores=_write_scores(report),
        answers=_ANSWERS.format(answers=answers) if answers else "",
    )


def _write_scores(report: AnswerReport) -> str:
    if report.base is None or report.tuned is None or report.source is None:
        return ""
    return _SCORES.format(
        scored=report.scored_examples,
        examples=f"{report.examples:,}",
        source=_SOURCES[report.source],
        rows="\n".join(_rows(report.base, report.tuned)),
    )


def _rows(base: Scores, tuned: Scores) -> Iterable[str]:
    yield f"| exact match | {base.exact_match:.1%} | {tuned.exact_match:.1%} |"
    yield f"| token F1 | {base.token_f1:.1%} | {tuned.token_f1:.1%} |"
    if base.valid_json is not None and tuned.valid_json is not None:
        yield f"| valid JSON | {base.valid_json:.1%} | {tuned.valid_json:.1%} |"


def _show(pair: AnswerPair) -> str:
    texts: dict[str, str | None] = {"Prompt": pair.prompt}
    if pair.refusal is None:
        texts |= {
            "Reference": pair.reference,
            "Base model": pair.base.text,
            "Tuned model": pair.tuned.text,
        }
    else:
        texts["Not answered"] = pair.refusal
    return "\n\n".join(
        f"{title}:\n\n{_fence(text)}" for title, text in texts.items() if text is not None
    )


def _fence(text: str) -> str:
    """A block of code, which shows every character as it is: the text may be Markdown itself."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"
