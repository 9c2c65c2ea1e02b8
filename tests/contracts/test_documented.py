"""What users meet is in the documentation, and the documentation has nothing else.

Codes are collected from the source itself, so a new one fails here until it is explained.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic.fields import FieldInfo

from app.core import errors
from app.core.dataset.formats import ChatExample, DatasetFormat
from app.core.dataset.rows.parsing import parse_line
from app.core.job.status import TRANSITIONS, JobStatus
from app.core.settings import Settings
from app.schemas.sampling.chat import ChatCompletionCreate
from app.schemas.sampling.completions import CompletionCreate
from app.schemas.sampling.fields import StreamOptions
from app.schemas.sampling.responses import ResponseCreate

PROJECT = Path(__file__).parents[2]
DATASET_MODULES = tuple(
    str(path.relative_to(PROJECT)) for path in (PROJECT / "app/core/dataset").rglob("*.py")
)
TAKES_A_CODE_FIRST = {"LineError", "RefusedError", "TrainingFailedError", "UnavailableError"}
CODE_TABLE = "_CODES"
"""The dictionary whose values are codes, in `app/api/errors.py`."""


class FoundCode(NamedTuple):
    code: str
    status: int | None
    """Of the HTTP answer, where the class of the error says it."""


JOB_MODULES = tuple(
    f"app/core/db/repositories/{name}.py"
    for name in ("data_checks", "recovery", "tasks/leases", "transitions", "workers")
)
"""Say why jobs and exports have failed; every other module there speaks to callers."""


SAMPLING_MODULES = tuple(
    str(path.relative_to(PROJECT)) for path in (PROJECT / "worker/sampling").rglob("*.py")
)
"""Answer requests, although they belong to the worker."""


def read_document(name: str) -> str:
    return (PROJECT / "docs" / name).read_text("utf-8")


def read_table(document: str, heading: str) -> list[list[str]]:
    """The cells of the tables under a heading, less their head; the first one is in backticks."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)
    assert section, f"There is no section '{heading}'."
    rows = [line for line in section[1].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def listed_in(document: str, heading: str) -> list[str]:
    return [row[0].strip("`") for row in read_table(document, heading)]


def find_codes(*modules: str) -> set[FoundCode]:
    """Every code that is written down in these modules or packages of the source."""
    paths = [path for name in modules for path in expand(PROJECT / name)]
    return {
        found
        for path in paths
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for found in codes_of(node)
    }


def expand(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def codes_of(node: ast.AST) -> Iterator[FoundCode]:
    match node:
        case ast.Call(func=ast.Name(id="DataWarning")):
            values, status = [], None
        case ast.Call(func=ast.Name(id=name)):
            values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            values += node.args[:1] if name in TAKES_A_CODE_FIRST else []
            status = status_of(name)
        case ast.Call():
            values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            status = None
        case ast.ClassDef(name=name):
            values = [value for statement in node.body for value in assigned_to(statement, "code")]
            status = status_of(name)
        case ast.Dict():
            values = [
                value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and key.value == "code"
            ]
            status = None
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            values = [value for inner in ast.walk(node) for value in assigned_to(inner, "code")]
            status = None
        case _:
            values = [
                value
                for table in assigned_to(node, CODE_TABLE)
                if isinstance(table, ast.Dict)
                for value in table.values
            ]
            status = 400
    return (FoundCode(text, status) for value in values for text in texts_of(value))


def assigned_to(node: ast.AST, name: str) -> Iterator[ast.expr]:
    """The values that a statement gives to the variable `name`."""
    match node:
        case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
            yield value
        case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
            yield value
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            for target, value in zip(targets, values, strict=True):
                if isinstance(target, ast.Name) and target.id == name:
                    yield value


def texts_of(value: ast.expr) -> Iterator[str]:
    """The strings that an expression may become."""
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from texts_of(body)
            yield from texts_of(orelse)
        case ast.BoolOp(values=values):
            for one in values:
                yield from texts_of(one)
        case ast.Call(func=ast.Attribute(attr="get"), args=[_, default]):
            yield from texts_of(default)


def status_of(class_name: str) -> int | None:
    found = getattr(errors, class_name, None)
    if isinstance(found, type) and issubclass(found, errors.ServiceError):
        return found.status_code
    return None


def check_listed(listed: list[str], *, written: set[str]) -> None:
    undocumented, gone = written - set(listed), set(listed) - written

    assert written
    assert not undocumented | gone, f"Not documented: {undocumented}. Documented, but gone: {gone}."
    assert len(listed) == len(written), "Something is listed twice."


def text_of_default(field: FieldInfo) -> str:
    if field.default is None:
        return "derived" if "The default " in (field.description or "") else "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, float):
        return f"`{field.default:g}`"
    return f"`{field.default}`" if str(field.default) else "empty"


def test_every_setting_is_documented_with_its_default_and_its_own_words() -> None:
    expected = [
        [
            f"`TUNERY_{name.upper()}`",
            text_of_default(field),
            " ".join((field.description or "").split()),
        ]
        for name, field in Settings.model_fields.items()
    ]

    assert read_table(read_document("settings.md"), "Every setting") == expected


def test_the_codes_of_requests_are_those_of_the_source() -> None:
    elsewhere = [
        str(path.relative_to(PROJECT))
        for path in expand(PROJECT / "app")
        if str(path.relative_to(PROJECT)) not in (*DATASET_MODULES, *JOB_MODULES)
    ]
    written = {found.code for found in find_codes(*elsewhere, *SAMPLING_MODULES)}
    listed = listed_in(read_document("errors.md"), "Codes of requests")

    check_listed(listed, written=written)


def test_the_statuses_of_requests_are_those_of_the_source() -> None:
    rows = read_table(read_document("errors.md"), "Codes of requests")
    documented = {(row[0].strip("`"), int(status)) for row in rows for status in row[1].split(", ")}
    written = {(found.code, found.status) for found in find_codes("app") if found.status}

    assert written <= documented


def test_the_codes_of_failed_jobs_are_those_of_the_source() -> None:
    modules = [
        str(path.relative_to(PROJECT))
        for path in expand(PROJECT / "worker")
        if str(path.relative_to(PROJECT)) not in SAMPLING_MODULES
    ]
    written = {found.code for found in find_codes(*modules, *JOB_MODULES)}
    listed = listed_in(read_document("errors.md"), "Codes of failed jobs")

    check_listed(listed, written=written)


def test_the_codes_of_warnings_are_those_of_the_source() -> None:
    written: set[str] = set()
    for path in expand(PROJECT / "worker" / "training"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="DataWarning"), keywords=keywords):
                    values = [keyword.value for keyword in keywords if keyword.arg == "code"]
                case ast.Call(func=ast.Attribute(attr="warn"), args=[code, *_]):
                    values = [code]
                case _:
                    continue
            written.update(text for value in values for text in texts_of(value))
    listed = listed_in(read_document("errors.md"), "Codes of warnings about data")

    check_listed(listed, written=written)


def test_the_codes_of_bad_lines_are_those_of_the_source() -> None:
    written = {found.code for found in find_codes(*DATASET_MODULES)}
    listed = listed_in(read_document("files.md"), "Problems of a line")

    check_listed(listed, written=written)


def test_every_parameter_without_an_effect_is_listed() -> None:
    bodies = (ChatCompletionCreate, CompletionCreate, ResponseCreate, StreamOptions)
    ignored = {
        name
        for body in bodies
        for name, field in body.model_fields.items()
        if field.description and field.description.endswith("has no effect.")
    }
    _, _, rest = read_document("chat.md").partition("These are accepted and have no effect:")
    listed, _, _ = rest.partition("Every other parameter")

    assert len(ignored) > 5
    assert [name for name in sorted(ignored) if f"{name}`" not in listed] == []


def test_the_examples_of_data_sets_are_data_sets() -> None:
    formats = read_document("files.md").partition("\n## Formats\n")[2].partition("\n## ")[0]
    examples = [
        parse_line(line) for line in re.findall(rb"^\{.*\}$", formats.encode(), re.MULTILINE)
    ]

    assert {format_ for format_, _ in examples} == set(DatasetFormat)
    assert any(isinstance(one, ChatExample) and one.uses_tools for _, one in examples)


def test_every_status_is_explained_and_no_other() -> None:
    assert sorted(listed_in(read_document("jobs.md"), "Statuses")) == sorted(JobStatus)


def test_the_diagram_of_a_job_shows_every_transition_and_no_other() -> None:
    arrows = re.findall(r"^ +(\S+) --> ([^\s:]+)", read_document("jobs.md"), re.MULTILINE)
    changes = [(before, after) for before, afters in TRANSITIONS.items() for after in afters]
    begin = [("[*]", JobStatus.VALIDATING_FILES)]
    ends = [(status, "[*]") for status in JobStatus if status.is_terminal]

    assert sorted(arrows) == sorted(begin + changes + ends)
