"""Whole requests as bytes, as they go over the wire."""

import json
from typing import Any

JSON = "application/json"
FORM = "multipart/form-data; boundary=X"
PURPOSE = b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
FILE_HEAD = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
FORM_END = b"\r\n--X--\r\n"


def request(
    path: str, body: bytes | None = None, *, method: str = "POST", headers: str = ""
) -> bytes:
    """A request that closes its connection. `headers` are lines that end with CR LF."""
    length = "" if body is None else f"content-length: {len(body)}\r\n"
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n{length}{headers}"
    return head.encode("utf-8", "surrogateescape") + b"\r\n" + (body or b"")


def post_json(path: str, body: bytes, content_type: str = JSON) -> bytes:
    return request(path, body, headers=f"content-type: {content_type}\r\n")


def post_form(body: bytes, path: str = "/v1/files", content_type: str = FORM) -> bytes:
    return request(path, body, headers=f"content-type: {content_type}\r\n")


def upload(content: bytes) -> bytes:
    """A well-formed form with this file."""
    return post_form(PURPOSE + FILE_HEAD + content + FORM_END)


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()
