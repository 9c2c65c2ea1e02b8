"""Whatever is sent, the answer is a promise or an envelope with a request id; never a 5xx."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.schemas.fine_tuning_jobs import JobCreate
from app.schemas.hyperparameters import Hyperparameters
from tests.acceptance.lab import Answer, Lab, open_lab
from tests.builders import CHAT_LINE, TEXT_LINE
from tests.effort import effort

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()  # with NaN and the infinities, which json.dumps writes as such
    | st.text(max_size=20)
    | st.sampled_from(["auto", "tiny", "\ud800", "\0", "file-1", 2**63, -1, 1e308])
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_KNOBS = st.dictionaries(st.sampled_from(list(Hyperparameters.model_fields)), _VALUES)
_BODIES = _VALUES | st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(JobCreate.model_fields, _VALUES)
    | {
        "model": st.just("tiny"),
        "hyperparameters": _KNOBS | _VALUES,
        "method": st.fixed_dictionaries(
            {"type": st.just("supervised")},
            optional={"supervised": st.fixed_dictionaries({"hyperparameters": _KNOBS})},
        )
        | _VALUES,
    },
)
_ROWS = _VALUES | st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "tool"]) | _SCALARS},
                optional=dict.fromkeys(("content", "weight", "tool_calls", "name", "x"), _VALUES),
            ),
            max_size=3,
        )
    },
    optional={"tools": _VALUES},
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def check(answer: Answer) -> None:
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        assert len(error["message"]) < 1000


@settings(max_examples=effort(80, long=200))
@given(body=_BODIES, is_good_otherwise=st.booleans())
def test_any_json_as_a_job(lab: Lab, body: Any, is_good_otherwise: bool) -> None:  # noqa: FBT001 - drawn
    if is_good_otherwise and isinstance(body, dict):
        body = {"model": "tiny", "training_file": lab.text_file} | body

    check(lab.send_json(json.dumps(body).encode()))


@settings(max_examples=effort(50, long=100))
@given(body=st.binary(max_size=200))
def test_any_bytes_as_a_job(lab: Lab, body: bytes) -> None:
    check(lab.send_json(body))


@settings(max_examples=effort(80, long=200))
@given(rows=st.lists(_ROWS, max_size=4))
def test_any_json_lines_as_a_data_set(lab: Lab, rows: list[Any]) -> None:
    check(lab.upload("\n".join(json.dumps(row) for row in rows).encode()))


@settings(max_examples=effort(50, long=100))
@given(pieces=st.lists(st.sampled_from([TEXT_LINE, CHAT_LINE, b"\n", b"{"]) | st.binary()))
def test_any_bytes_as_a_data_set(lab: Lab, pieces: list[bytes]) -> None:
    check(lab.upload(b"".join(pieces)))


@settings(max_examples=effort(50, long=100))
@given(
    pieces=st.lists(
        st.sampled_from(
            [
                b"--X\r\n",
                b"--X--\r\n",
                b"\r\n",
                b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n',
                b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune',
                TEXT_LINE,
            ]
        )
        | st.binary(max_size=20)
    )
)
def test_any_bytes_as_a_form(lab: Lab, pieces: list[bytes]) -> None:
    check(lab.send_form(b"".join(pieces)))


@settings(max_examples=effort(80, long=200))
@given(
    path=st.sampled_from(
        ["/files", "/fine_tuning/jobs", "/fine_tuning/jobs/JOB/events", "/fine_tuning/jobs/JOB"]
    ),
    part=st.text(max_size=10),
    query=st.dictionaries(
        st.sampled_from(
            ["after", "limit", "order", "purpose", "metadata", "metadata[a]", "metadata["]
        ),
        st.text(max_size=20) | st.integers().map(str),
    ),
)
def test_any_path_and_query(lab: Lab, path: str, part: str, query: dict[str, str]) -> None:
    url = lab.client.base_url.copy_with(
        path="/v1" + path.replace("JOB", lab.queued_job), params=query
    )

    check(lab.client.get(url))
    check(lab.get(f"/files/{quote(part, safe='', errors='replace')}"))


@settings(max_examples=effort(80, long=200))
@given(
    asked=st.text(alphabet="bytes=0123456789-, \u0663", max_size=20)
    | st.tuples(st.integers(), st.integers()).map(lambda pair: f"bytes={pair[0]}-{pair[1]}")
)
def test_any_range(lab: Lab, asked: str) -> None:
    headers = {"range": asked.encode()}

    check(lab.client.get(f"/v1/files/{lab.text_file}/content", headers=headers))
