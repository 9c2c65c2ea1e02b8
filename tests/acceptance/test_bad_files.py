"""Uploads that are refused, each with its whole answer; and those that only look bad."""

import gzip
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.lab import MAX_UPLOAD_BYTES, Lab, Send, bad_file, envelope, open_lab
from tests.builders import CHAT_LINE, TEXT_LINE

NOT_JSON = "This line is not valid JSON: "
NO_OBJECT = 'This line must be a JSON object, as {"text": "..."} is.'
NO_FORMAT = (
    "This line needs the key 'messages', or 'prompt' and 'completion', or 'text', or those of "
    "another format in docs/files.md."
)
TWO_FORMATS = (
    "This line is in the messages format, but the lines before it are in the text format. Use one "
    "format per file."
)
ROLES = "Use one of system, developer, user, assistant, tool."
NO_EXAMPLE = "The file has no examples. Add at least one line."
NO_FORM = "Send the file as multipart/form-data, in the field 'file'."
BAD_FORM = "The body is not well-formed multipart/form-data: "
BAD_EXPIRY = "'expires_after[seconds]' must be a whole number from 3600 to 2592000."
OVERLONG = "This line is longer than 8 MiB. Split the example, and write one JSON object per line."
FILE_PART = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + TEXT_LINE
PURPOSE_PART = b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
MANY_PARTS = b"".join(PURPOSE_PART.replace(b"purpose", b"field-%d" % n) for n in range(21))
END = b"\r\n--X--\r\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(
            b'{"text": NaN}\n',
            bad_file((1, "", "invalid_json", f"{NOT_JSON}NaN is not JSON.")),
            id="NaN",
        ),
        pytest.param(
            b'{"text": "\xff"}\n',
            bad_file((1, "", "not_utf8", f"{NOT_JSON}not UTF-8: invalid start byte at byte 10.")),
            id="not UTF-8",
        ),
        pytest.param(
            b'{"text": ' + b"[" * 10_000 + b"\n",
            bad_file((1, "", "invalid_json", f"{NOT_JSON}nested too deeply.")),
            id="deep",
        ),
        pytest.param(b"", bad_file((1, "", "empty_file", NO_EXAMPLE)), id="empty"),
        pytest.param(
            TEXT_LINE + CHAT_LINE,
            bad_file((2, "", "mixed_formats", TWO_FORMATS)),
            id="two formats in a file",
        ),
        pytest.param(
            b'{"question": "a", "answer": "b"}\n',
            bad_file((1, "", "unknown_format", f"{NO_FORMAT} Its keys are: 'question', 'answer'.")),
            id="no format",
        ),
        pytest.param(
            b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "robot"}]}\n',
            bad_file((1, "messages[1].role", "bad_role", f"'robot' is not a role. {ROLES}")),
            id="bad role",
        ),
        pytest.param(
            TEXT_LINE + b'{"text": "' + b"x" * 2**23 + b'"}\n' + b'{"text": 1}\n',
            bad_file(
                (2, "", "line_too_long", OVERLONG),
                (3, "text", "wrong_type", "'text' must be a string."),
            ),
            id="overlong line",
        ),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(
    lab: Lab, content: bytes, error: dict[str, Any]
) -> None:
    answer = lab.upload(content)

    assert answer.json() == error
    assert answer.status_code == 400


def test_the_check_of_a_file_stops_at_the_fiftieth_problem(lab: Lab) -> None:
    answer = lab.upload(b"[]\n" * 60)

    error = bad_file(*((line, "", "not_an_object", NO_OBJECT) for line in range(1, 51)))["error"]
    error["message"] = error["message"].replace("49 more", "at least 49 more")
    assert answer.json() == {"error": error | {"error_count_is_minimum": True}}
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("send", "status", "error"),
    [
        pytest.param(
            lambda lab: lab.post(
                "/files", data={"purpose": "fine-tune"}, files={"data": ("a", TEXT_LINE)}
            ),
            400,
            envelope("missing_required_parameter", "The field 'file' is missing.", "file"),
            id="no file",
        ),
        pytest.param(
            lambda lab: lab.post("/files", files={"file": ("a", TEXT_LINE)}),
            400,
            envelope(
                "missing_required_parameter",
                "The field 'purpose' is missing. It must be 'fine-tune'.",
                "purpose",
            ),
            id="no purpose",
        ),
        pytest.param(
            lambda lab: lab.upload(TEXT_LINE, purpose="assistants"),
            400,
            envelope(
                "unsupported_purpose",
                "The purpose 'assistants' is not offered here. It must be 'fine-tune'.",
                "purpose",
            ),
            id="another purpose",
        ),
        pytest.param(
            lambda lab: lab.post(
                "/files",
                data={"purpose": "fine-tune"},
                files=[("file", ("a", TEXT_LINE)), ("file", ("b", TEXT_LINE))],
            ),
            400,
            envelope("invalid_value", "Send only one file per request.", "file"),
            id="two files",
        ),
        pytest.param(
            lambda lab: lab.upload(b"x" * (MAX_UPLOAD_BYTES + 1)),
            413,
            envelope(
                "file_too_large",
                "A file can have at most 20,000,000 bytes here. Split it, or raise "
                "TUNERY_MAX_UPLOAD_BYTES.",
                "file",
            ),
            id="too large",
        ),
        pytest.param(
            lambda lab: lab.send_form(PURPOSE_PART + FILE_PART + END + b"x" * 23_000_000),
            413,
            envelope(
                "file_too_large",
                "A file can have at most 20,000,000 bytes here. Split it, or raise "
                "TUNERY_MAX_UPLOAD_BYTES.",
                "file",
            ),
            id="more after the end",
        ),
        pytest.param(
            lambda lab: lab.post("/files", json={"purpose": "fine-tune"}),
            415,
            envelope("unsupported_media_type", NO_FORM),
            id="JSON",
        ),
        pytest.param(
            lambda lab: lab.post("/files", data={"purpose": "fine-tune"}),
            415,
            envelope("unsupported_media_type", NO_FORM),
            id="form without parts",
        ),
        pytest.param(
            lambda lab: lab.send_form(b"", boundary=""),
            415,
            envelope("unsupported_media_type", NO_FORM),
            id="no boundary",
        ),
        pytest.param(
            lambda lab: lab.send_form(b"", boundary="x" * 257),
            400,
            envelope("invalid_multipart", f"{BAD_FORM}Boundary length 257 exceeds maximum of 256."),
            id="long boundary",
        ),
        pytest.param(
            lambda lab: lab.send_form(b"nonsense"),
            400,
            envelope(
                "invalid_multipart",
                f"{BAD_FORM}Expected boundary character 45, got 110 at index 2.",
            ),
            id="nonsense",
        ),
        pytest.param(
            lambda lab: lab.send_form(b""),
            400,
            envelope("invalid_multipart", f"{BAD_FORM}its closing boundary is missing."),
            id="nothing",
        ),
        pytest.param(
            lambda lab: lab.send_form(PURPOSE_PART + FILE_PART),
            400,
            envelope("invalid_multipart", f"{BAD_FORM}its closing boundary is missing."),
            id="cut off",
        ),
        pytest.param(
            lambda lab: lab.send_form(MANY_PARTS + FILE_PART + END),
            400,
            envelope("invalid_multipart", f"{BAD_FORM}it has more than 20 parts."),
            id="many parts",
        ),
        pytest.param(
            lambda lab: lab.send_form(b"--X\r\nContent-Disposition: " + b"a" * 5000 + END),
            400,
            envelope("invalid_multipart", f"{BAD_FORM}Maximum header size exceeded."),
            id="long header of a part",
        ),
        pytest.param(
            lambda lab: lab.upload(TEXT_LINE, note="x" * 65_537),
            400,
            envelope("invalid_value", "A field can have at most 65,536 bytes."),
            id="long field",
        ),
        pytest.param(
            lambda lab: lab.upload(TEXT_LINE, **{"expires_after[seconds]": "3600"}),
            400,
            envelope(
                "invalid_value",
                "'expires_after[anchor]' must be 'created_at'.",
                "expires_after[anchor]",
            ),
            id="expiry without anchor",
        ),
        *(
            pytest.param(
                lambda lab, seconds=seconds: lab.upload(
                    TEXT_LINE,
                    **{"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds},
                ),
                400,
                envelope("invalid_value", BAD_EXPIRY, "expires_after[seconds]"),
                id=f"expiry of {seconds[:10]}",
            )
            for seconds in ("3599", "2592001", "-1", "1e5", "soon", "9" * 5000)
        ),
    ],
)
def test_a_bad_upload_is_refused(lab: Lab, send: Send, status: int, error: dict[str, Any]) -> None:
    answer = send(lab)

    assert answer.json() == error
    assert answer.status_code == status
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("content", "format_", "examples"),
    [
        pytest.param(b"\xef\xbb\xbf" + TEXT_LINE, "text", 1, id="byte order mark"),
        pytest.param(b'{"text": "a"}\r\n{"text": "b"}\r\n', "text", 2, id="carriage returns"),
        pytest.param(CHAT_LINE + b"\n \n\r\n", "messages", 1, id="trailing blank lines"),
        pytest.param(b'{"prompt": "", "completion": "b"}', "prompt_completion", 1, id="no end"),
        pytest.param(gzip.compress(CHAT_LINE * 3), "messages", 3, id="gzip"),
        pytest.param(b"instruction,output\na,b\n", "instruction", 1, id="CSV"),
    ],
)
def test_what_only_looks_bad_is_accepted(
    lab: Lab, content: bytes, format_: str, examples: int
) -> None:
    answer = lab.upload(content)

    assert answer.status_code == 200
    assert (answer.json()["format"], answer.json()["examples"]) == (format_, examples)
    assert lab.get(f"/files/{answer.json()['id']}/content").content == content


def test_a_table_may_be_sent_in_parts(lab: Lab) -> None:
    parts = [b"prompt,compl", b'etion\na,b\n"c', b'\n",d\n']
    body = {
        "filename": "a.csv",
        "bytes": sum(map(len, parts)),
        "mime_type": "text/csv",
        "purpose": "fine-tune",
    }
    upload = f"/uploads/{lab.post('/uploads', json=body).json()['id']}"
    ids = [lab.post(f"{upload}/parts", files={"data": part}).json()["id"] for part in parts]

    answer = lab.post(f"{upload}/complete", json={"part_ids": ids}).json()

    assert (answer["file"]["format"], answer["file"]["examples"]) == ("prompt_completion", 2)


def test_a_bad_table_sent_in_parts_can_be_completed_again(lab: Lab) -> None:
    body = {"filename": "a", "bytes": 8, "mime_type": "text/csv", "purpose": "fine-tune"}
    upload = f"/uploads/{lab.post('/uploads', json=body).json()['id']}"
    part = lab.post(f"{upload}/parts", files={"data": b'text\n"a\n'}).json()["id"]

    answer = lab.post(f"{upload}/complete", json={"part_ids": [part]})

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_file")
    assert [one["code"] for one in answer.json()["error"]["errors"]] == ["invalid_csv"]
    assert lab.get(upload).json()["status"] == "pending"


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\train.jsonl", "train.jsonl"),
        ("train\x01\x7f.jsonl", "train.jsonl"),
        ("", "upload"),
        ("..", "upload"),
        ("x" * 300, "x" * 255),
        ("données.jsonl", "données.jsonl"),
    ],
)
def test_a_filename_is_only_a_name(lab: Lab, sent: str, shown: str) -> None:
    part = FILE_PART.replace(b'filename="a"', f'filename="{sent}"'.encode())

    answer = lab.send_form(PURPOSE_PART + part + END)

    assert answer.json()["filename"] == shown


def test_a_refused_upload_leaves_nothing_behind(lab: Lab) -> None:
    blobs = lab.client.app.state.resources.settings.blobs_dir  # pyright: ignore[reportAttributeAccessIssue] - FastAPI's
    before = sorted(blobs.rglob("*"))

    lab.upload(b"[]\n")
    lab.send_form(PURPOSE_PART + FILE_PART)
    lab.upload(b"x" * (MAX_UPLOAD_BYTES + 1))

    assert sorted(blobs.rglob("*")) == before
