"""Hostile files and requests: written by hand, then mutated, the same ones on every run."""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

from tests.builders import CHAT_LINE, TEXT_LINE
from tests.effort import effort
from tests.malformed.mutations import mutate_bytes, mutate_json
from tests.malformed.wire import (
    FILE_HEAD,
    FORM_END,
    PURPOSE,
    dump,
    post_form,
    post_json,
    request,
    upload,
)

MIB = 2**20
JOBS = "/v1/fine_tuning/jobs"
MUTANTS_PER_SEED = effort(2, long=6)
MAX_MUTATED_BYTES = 64 * 1024


class Attack(NamedTuple):
    name: str
    request: bytes


def _message(**changes: object) -> dict[str, object]:
    return {"role": "user", "content": "Hi"} | changes


def _call(arguments: str) -> bytes:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    answer = {"role": "assistant", "tool_calls": [call]}
    return dump({"messages": [_message(), answer]})


FILES: dict[str, bytes] = {
    "empty": b"",
    "blank lines": b"\n" * 100_000,
    "only a byte order mark": b"\xef\xbb\xbf",
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf" + TEXT_LINE,
    "utf-16": TEXT_LINE.decode().encode("utf-16"),
    "latin-1": '{"text": "größe"}'.encode("latin-1"),
    "binary": bytes(range(256)) * 40,
    "NULs": b"\0" * 10_000,
    "gzip": b"\x1f\x8b\x08\x00" + bytes(200),
    "zip": b"PK\x03\x04" + bytes(200),
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system",
    "html": b"<script>alert(1)</script>",
    "csv": b"prompt,completion\n=cmd|' /C calc'!A0,b\n",
    "a list": b"[" + TEXT_LINE.strip() + b"]",
    "bad short lines": b"[]\n" * 100_000,
    "bad empty objects": b"{}\n" * 100_000,
    "not quite json": b"{'text': 'a'}\n" * 1000,
    "trailing comma": b'{"text": "a",}\n',
    "comment": b'{"text": "a"} // b\n',
    "two values": b'{"text": "a"} {"text": "b"}\n',
    "cut off": b'{"text": "a',
    "eight MiB without an end": b'{"text": "' + b"x" * (8 * MIB - 20),
    "eight MiB of braces": b"[" * (8 * MIB - 1),
    "eight MiB of objects": b'{"messages": [' + b"{}," * (2 * MIB) + b"{}]}",
    "a million bad messages": b'{"messages": [' + b'{"a":1},' * 1_000_000 + b"{}]}",
    "eight MiB of quotes": b'{"text": ' + b'"' * (8 * MIB - 20),
    "eight MiB of escapes": b'{"text": "' + b"\\u0041" * (MIB + MIB // 4) + b'"}',
    "eight MiB of surrogates": b'{"text": "' + b"\\ud800" * (MIB + MIB // 4) + b'"}',
    "eight MiB of NULs as escapes": b'{"text": "' + b"\\u0000" * (MIB + MIB // 4) + b'"}',
    "eight MiB of digits": b'{"text": ' + b"1" * (8 * MIB - 20) + b"}",
    "nine MiB": b'{"text": "' + b"x" * 9 * MIB + b'"}',
    "many keys": b'{"text": "a"' + b"".join(b',"%d":1' % i for i in range(90_000)) + b"}",
    "a long key": b'{"' + b"k" * MIB + b'": 1}',
    "long text, one astral character": b'{"text": "' + b"x" * 4 * MIB + b'\xf0\x9f\x99\x82"}',
    "deep lists": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"text": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}",
    "deep tools": b'{"messages": [], "tools": [' + b"[" * 900 + b"]" * 900 + b"]}",
    "huge exponent": b'{"text": 1e999}',
    "tiny exponent": b'{"text": 1e-999999999}',
    "minus zero": b'{"text": -0}',
    "NaN": b'{"text": NaN}',
    "infinity": b'{"text": -Infinity}',
    "repeated key": b'{"text": "a", "text": "b"}',
    "repeated escaped key": b'{"text": "a", "\\u0074ext": "b"}',
    "prototype": b'{"__proto__": {"text": "a"}, "text": "a"}',
    "overlong utf-8": b'{"text": "\xc0\xaf"}',
    "surrogate in utf-8": b'{"text": "\xed\xa0\x80"}',
    "beyond unicode": b'{"text": "\xf4\x90\x80\x80"}',
    "lone surrogate": b'{"text": "\\ud800"}',
    "raw control characters": b'{"text": "\x01\x02"}',
    "line separators": '{"text": "\u2028\u2029\u0085"}'.encode(),
    "carriage returns": TEXT_LINE.replace(b"\n", b"\r") * 100,
    "no content": dump({"messages": [{"role": "user"}]}),
    "role is a list": dump({"messages": [_message(role=["user"])]}),
    "role is an object": dump({"messages": [_message(role={})]}),
    "role is huge": dump({"messages": [_message(role="r" * MIB)]}),
    "weight is huge": dump({"messages": [_message(role="assistant", weight=10**400)]}),
    "weight is a list": dump({"messages": [_message(role="assistant", weight=[])]}),
    "content is deep": dump({"messages": [_message(content=[[[[]]]])]}),
    "an image": dump({"messages": [_message(content=[{"type": "image_url"}])]}),
    "five thousand messages": dump({"messages": [_message(), _message(role="assistant")] * 2500}),
    "deep arguments": _call("[" * 500 + "]" * 500),
    "very deep arguments": _call("[" * 100_000),
    "surrogate in arguments": _call('{"a": "\\ud800"}'),
    "NaN in arguments": _call('{"a": NaN}'),
    "huge number in arguments": _call("9" * 10_000),
    "calls of a user": dump({"messages": [_message(tool_calls=[{}])]}),
    "template": dump({"text": "{{ 7 * 7 }}{% for x in range(10**9) %}x{% endfor %}"}),
    "formats mixed": (TEXT_LINE + CHAT_LINE) * 100,
}

FORMS: dict[str, bytes] = {
    "nothing": b"",
    "only the end": FORM_END,
    "no end": PURPOSE + FILE_HEAD + TEXT_LINE,
    "end in the middle": PURPOSE + FORM_END + FILE_HEAD + TEXT_LINE + FORM_END,
    "no disposition": b"--X\r\n\r\nfine-tune\r\n" + FORM_END,
    "no name": b"--X\r\nContent-Disposition: form-data\r\n\r\na" + FORM_END,
    "name without quotes": FILE_HEAD.replace(b'"file"', b"file") + TEXT_LINE + FORM_END,
    "name with a NUL": FILE_HEAD.replace(b"a.jsonl", b"a\0b") + TEXT_LINE + FORM_END,
    "path as name": PURPOSE
    + FILE_HEAD.replace(b"a.jsonl", b"../../../etc/passwd")
    + TEXT_LINE
    + FORM_END,
    "name of a MiB": FILE_HEAD.replace(b"a.jsonl", b"a" * MIB) + TEXT_LINE + FORM_END,
    "name not utf-8": PURPOSE + FILE_HEAD.replace(b"a.jsonl", b"\xff\xfe") + TEXT_LINE + FORM_END,
    "name with a line feed": PURPOSE
    + FILE_HEAD.replace(b"a.jsonl", b"a\nb: c")
    + TEXT_LINE
    + FORM_END,
    "name with a line end": FILE_HEAD.replace(b"a.jsonl", b"a\r\nb: c") + TEXT_LINE + FORM_END,
    "name in pieces": PURPOSE
    + FILE_HEAD.replace(b'filename="a.jsonl"', b"filename*0=a; filename*1=b; filename=c")
    + TEXT_LINE
    + FORM_END,
    "encoded name": PURPOSE
    + FILE_HEAD.replace(b'filename="a.jsonl"', b"filename*=utf-8''%ff%00%0a")
    + TEXT_LINE
    + FORM_END,
    "many parts": PURPOSE * 1000 + FORM_END,
    "a hundred thousand parts": b"--X\r\n\r\n\r\n" * 100_000 + FORM_END,
    "many headers": b"--X\r\n" + b"a: b\r\n" * 10_000 + b"\r\n" + FORM_END,
    "endless header": b"--X\r\nContent-Disposition: " + b"a" * 2 * MIB,
    "two dispositions": FILE_HEAD[:-2] + FILE_HEAD[5:] + TEXT_LINE + FORM_END,
    "header without a colon": b"--X\r\nContent-Disposition\r\n\r\n" + FORM_END,
    "header with a bare line feed": b"--X\nContent-Disposition: form-data\n\n" + FORM_END,
    "two files": (PURPOSE + FILE_HEAD + TEXT_LINE + b"\r\n") + FILE_HEAD + TEXT_LINE + FORM_END,
    "long field": b'--X\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"b" * MIB,
    "two purposes": PURPOSE * 2 + FILE_HEAD + TEXT_LINE + FORM_END,
    "a form in a form": PURPOSE
    + FILE_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=Y\r\n\r\n")
    + b"--Y\r\n\r\n"
    + TEXT_LINE
    + b"\r\n--Y--"
    + FORM_END,
    "negative expiry": PURPOSE
    + b'--X\r\nContent-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n-1\r\n'
    + FILE_HEAD
    + TEXT_LINE
    + FORM_END,
    "boundary after boundary": b"--X\r\n" * 50_000,
    "almost boundaries": PURPOSE + FILE_HEAD + b"\r\n--" * 500_000,
    "boundaries that go on": PURPOSE + FILE_HEAD + b"\r\n--XX" * 500_000,
    "spaces after a boundary": b"--X\r\n\r\n\r\n--X" + b" " * 4 * MIB,
    "carriage returns": PURPOSE + FILE_HEAD + b"\r" * 2 * MIB,
    "a MiB before the first boundary": b"x" * MIB + PURPOSE + FORM_END,
    "line ends before the first boundary": b"\r\n" * 2 * MIB + PURPOSE + FORM_END,
    "a MiB after the last boundary": PURPOSE + FILE_HEAD + TEXT_LINE + FORM_END + b"x" * MIB,
}

CONTENT_TYPES = (
    "",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=" + "b" * 5000,
    'multipart/form-data; boundary="X',
    'multipart/form-data; boundary="' + ';"' * 20_000,
    "multipart/form-data; boundary=X; boundary=Y",
    "multipart/form-data; boundary=\udcff",
    "multipart/mixed; boundary=X",
    "application/x-www-form-urlencoded",
    "application/json; charset=utf-16",
    "text/plain",
    "a" * 10_000,
)

JOB = {
    "model": "tiny",
    "training_file": "file-1",
    "validation_file": "file-2",
    "suffix": "a",
    "seed": 1,
    "metadata": {"a": "b"},
    "hyperparameters": {"n_epochs": 1, "lora_r": 8, "learning_rate": 1e-4, "lora_dropout": 0.1},
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": "auto"}}},
    "integrations": [],
    "auto_start": False,
    "priority": 1,
}
UPLOAD = {
    "bytes": 10,
    "filename": "a",
    "mime_type": "b",
    "purpose": "fine-tune",
    "expires_after": {"anchor": "created_at", "seconds": 3600},
}
BODIES: dict[str, object] = {
    JOBS: JOB,
    f"{JOBS}/ftjob-1/rerun": {"from": "saved_state"},
    "/v1/uploads": UPLOAD,
    "/v1/uploads/upload_1/complete": {"part_ids": ["part_1", "part_2"], "md5": "0" * 32},
}
"""A body for each route that takes JSON."""

RAW_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a number": b"1",
    "a string": b'"a"',
    "a list": b"[]",
    "many unknown keys": dump({f"key{i}": i for i in range(62_000)}),
    "some unknown keys": dump({f"epoch{i}": i for i in range(100)}),
    "unknown keys everywhere": dump(
        {
            "metadata": {f"k{i}": i for i in range(100)},
            "hyperparameters": {f"n_epoch{i}": i for i in range(100)},
            "method": {"supervised": {"hyperparameters": {f"lora_{i}": i for i in range(100)}}},
        }
    ),
    "a key of a MiB": b'{"' + b"n_epochs" * 130_000 + b'": 1}',
    "a value of a MiB": b'{"model": "' + b"a" * 1_000_000 + b'"}',
    "a MiB of lists": b"[" * (MIB - 10),
    "a MiB of numbers": b"[" + b"1," * 500_000 + b"1]",
    "a MiB of pairs": b"[" + b'{"a":1},' * 130_000 + b"1]",
    "a MiB of wrong ids": dump({"part_ids": [1] * 20_000}),
    "a MiB of integrations": dump({"integrations": [{}] * 10_000}),
    "a MiB of digits": b'{"seed": ' + b"1" * 1_000_000 + b"}",
    "a MiB of escapes": b'{"model": "' + b"\\u0000" * 170_000 + b'"}',
    "two MiB": b" " * 2 * MIB,
    "deep": b'{"method": ' * 800 + b"1" + b"}" * 800,
    "repeated key": b'{"model": "a", "model": "b"}',
    "NaN": b'{"seed": NaN}',
    "huge exponent": b'{"seed": 1e999}',
    "not utf-8": b'{"model": "\xff"}',
    "utf-16": '{"model": "a"}'.encode("utf-16"),
    "lone surrogate": b'{"model": "\\ud800"}',
    "NUL": b'{"model": "\\u0000"}',
}

PATHS = (
    "/",
    "//",
    "/v1/../../etc/passwd",
    "/v1/files/%2e%2e%2f%2e%2e%2fetc%2fpasswd/content",
    "/v1/files/%00",
    "/v1/files/%ff%fe",
    "/v1/files/" + "a" * 20_000,
    "/v1/files/file-1%2Fcontent",
    "/v1/files/file-1/preview?model=%00&rows=" + "1," * 5000,
    "/v1/files?limit=-1",
    "/v1/files?limit=" + "9" * 5000,
    "/v1/files?limit=1&limit=2&limit=x",
    "/v1/files?after=%00",
    "/v1/files?" + "a&" * 20_000,
    "/v1/files?" + "&".join(f"a{i}=b" for i in range(8000)),
    "/v1/files?order=desc;drop table files",
    "/v1/files?purpose=%27%20or%201%3D1--",
    f"{JOBS}?metadata[%00]=a",
    f"{JOBS}?" + "&".join(f"metadata[{i}]=a" for i in range(1000)),
    f"{JOBS}?after=ftjob-%F0%9F%99%82",
    f"{JOBS}/ftjob-1/events?after=x&limit=0",
    f"{JOBS}/ftjob-1/metrics?step_from=-1&step_to=99999999999999999999",
    f"{JOBS}/ftjob-1/adapter?checkpoint=%2e%2e",
    "/v1/models/ft:tiny:tunery::" + "a" * 1000,
    "/docs/assets/../../../etc/passwd",
    "/docs/assets/%2e%2e/%2e%2e/etc/passwd",
    "/healthz?" + "a" * 50_000,
)

RAW_REQUESTS: dict[str, bytes] = {
    "nothing but line ends": b"\r\n" * 40_000,
    "no http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "http/0.9": b"GET /healthz\r\n",
    "http/3": b"GET /healthz HTTP/3.0\r\n\r\n",
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": b"BREW /v1/files HTTP/1.1\r\nhost: x\r\n\r\n",
    "a proxy's request": b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "an absolute address": b"GET http://evil/v1/files HTTP/1.1\r\nhost: x\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "an upgrade": request("/v1/files", method="GET", headers="upgrade: websocket\r\n").replace(
        b"connection: close", b"connection: upgrade"
    ),
    "spaces before the colon": b"GET / HTTP/1.1\r\nhost : x\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    "a header with a NUL": b"GET / HTTP/1.1\r\nhost: x\0y\r\n\r\n",
    "many headers": b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 9000 + b"\r\n",
    "a head of a MiB": b"GET / HTTP/1.1\r\na: " + b"b" * MIB + b"\r\n\r\n",
    "two lengths": b"POST /v1/uploads HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "negative length": b"POST /v1/uploads HTTP/1.1\r\ncontent-length: -1\r\n\r\nab",
    "length and chunks": b"POST /v1/uploads HTTP/1.1\r\ncontent-length: 4\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/files HTTP/1.1\r\n\r\n",
    "chunk of a negative size": b"POST /v1/uploads HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    b"-1\r\n\r\n",
    "chunk of a huge size": b"POST /v1/uploads HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    b"ffffffffffffffffff\r\n\r\n",
    "chunk extensions": b"POST /v1/uploads HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    b"1;" + b"a" * 70_000,
    "pipelined": b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 500
    + request("/healthz", method="GET"),
}

HEADERS = (
    "content-encoding: gzip",
    "content-encoding: gzip, br",
    "transfer-encoding: gzip, chunked",
    "expect: 100-continue",
    "expect: 200-ok",
    "range: bytes=0-" + "9" * 5000,
    "range: bytes=" + "0-0," * 10_000,
    "if-none-match: " + '"a",' * 10_000,
    "accept: " + "a/b;q=0.5," * 5000,
    "authorization: Bearer " + "a" * 50_000,
    "idempotency-key: " + "a" * 10_000,
    "x-stainless-retry-count: " + "9" * 5000,
    "x-stainless-read-timeout: 1e999",
    "x-stainless-read-timeout: nan",
    "x-forwarded-for: " + "1.2.3.4," * 5000,
    "cookie: " + "a=b;" * 10_000,
    "content-length: 5",
)


def _seeds() -> Iterator[Attack]:
    yield from (Attack(f"file: {name}", upload(content)) for name, content in FILES.items())
    yield from (Attack(f"form: {name}", post_form(body)) for name, body in FORMS.items())
    yield from (Attack(f"raw: {name}", raw) for name, raw in RAW_REQUESTS.items())
    for path, (name, body) in itertools.product(BODIES, RAW_BODIES.items()):
        yield Attack(f"{path}: {name}", post_json(path, body))
    for path, method in itertools.product(PATHS, ("GET", "POST", "DELETE", "HEAD")):
        yield Attack(f"{method} {path[:60]}", request(path, method=method))
    yield from _seeds_of_headers()


def _seeds_of_headers() -> Iterator[Attack]:
    form = PURPOSE + FILE_HEAD + TEXT_LINE + FORM_END
    for content_type in CONTENT_TYPES:
        yield Attack(f"form as {content_type[:40]!a}", post_form(form, content_type=content_type))
        yield Attack(f"JSON as {content_type[:40]!a}", post_json(JOBS, dump(JOB), content_type))
    for header in HEADERS:
        line = f"{header}\r\n"
        yield Attack(f"GET with {header[:40]}", request("/v1/files", method="GET", headers=line))
        whole = request(JOBS, dump(JOB), headers=f"content-type: application/json\r\n{line}")
        yield Attack(f"POST with {header[:40]}", whole)


def corpus() -> Iterator[Attack]:
    """Every attack written by hand, and the mutants of the small ones."""
    for seed in _seeds():
        yield seed
        if len(seed.request) > MAX_MUTATED_BYTES:
            continue
        chance = random.Random(seed.name)  # noqa: S311 - nothing secret
        for number in range(MUTANTS_PER_SEED):
            yield Attack(f"{seed.name} #{number}", mutate_bytes(chance, seed.request))


def malformed_bodies(count: int) -> Iterator[Attack]:
    """So many bodies of JSON with a few things wrong, and well-formed requests around them."""
    paths = list(BODIES)
    for number in range(count):
        chance = random.Random(number)  # noqa: S311 - nothing secret
        path = chance.choice(paths)
        body = dump(mutate_json(chance, BODIES[path]))
        if number % 3 == 0:
            body = mutate_bytes(chance, body)
        yield Attack(f"body {number}", post_json(path, body))
