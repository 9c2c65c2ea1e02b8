"""A model hub on this machine: the answers of huggingface.co that an installation relies on.

Spoken here, after huggingface_hub 2.4: a repository's information with its files' checksums, and
their contents at a commit. Large files are served from another host, behind a redirect, and in
parts when asked (`Range`); nothing offers Xet. What is asked is remembered in `requests`.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class SeenRequest:
    path: str
    range: str | None
    authorization: str | None
    user_agent: str | None


@dataclass(slots=True)
class StandInRepo:
    commits: dict[str, Files]
    main: str
    """The commit that the default branch is at."""
    is_gated: bool = False


@dataclass(slots=True)
class Interruption:
    """Send this many bytes of a large file, then stop."""

    after_bytes: int
    is_reached: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)
    """Set before, and the connection is dropped there; set later, and it waits until then."""


class HubStandIn:
    """Serves `repos` while it runs; a test changes them at will."""

    def __init__(self) -> None:
        self.repos: dict[str, StandInRepo] = {}
        self.requests: list[SeenRequest] = []
        self.served_instead: Files = {}
        """By name: contents that differ from what the repository lists."""
        self.interruption: Interruption | None = None
        """Of the next large file; the requests after it are answered with 503."""
        self.is_down = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    @contextmanager
    def running(self) -> Iterator["HubStandIn"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            if self.interruption is not None:
                self.interruption.may_go_on.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def url_of_large_files(self) -> str:
        return f"http://localhost:{self._server.server_port}/large"

    def add(self, repo: str, files: Files, commit: str) -> StandInRepo:
        """Add a commit and make it the newest."""
        known = self.repos.setdefault(repo, StandInRepo({}, commit))
        known.commits[commit] = files
        known.main = commit
        return known

    def names_fetched(self) -> list[str]:
        """The files asked for so far, in order."""
        resolved = [request.path for request in self.requests if "/resolve/" in request.path]
        return [unquote(path.rsplit("/", 1)[1]) for path in resolved]


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[HubStandIn]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            SeenRequest(
                path,
                self.headers["Range"],
                self.headers["Authorization"],
                self.headers["User-Agent"],
            )
        )
        if self.hub.is_down:
            self._answer(503)
        elif path.startswith("/large/"):
            self._serve_large(path.removeprefix("/large/"))
        elif path.startswith("/api/models/"):
            self._serve_information(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            self._serve_file(path.removeprefix("/"))
        else:
            self._answer(404)

    def _serve_information(self, path: str) -> None:
        repo_id, _, revision = path.partition("/revision/")
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
            return
        commit = revision or repo.main
        if commit not in repo.commits:
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [_sibling(*file) for file in sorted(repo.commits[commit].items())]
        body = json.dumps({"id": repo_id, "sha": commit, "siblings": siblings}).encode()
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _serve_file(self, path: str) -> None:
        repo_id, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        repo = self.hub.repos[repo_id]
        if repo.is_gated and self.headers["Authorization"] != "Bearer may-read":
            self._answer(403, {"X-Error-Code": "GatedRepo"})
            return
        content = repo.commits[commit][name]
        if _is_large(name):
            target = f"{self.hub.url_of_large_files}/{repo_id}/{commit}/{name}"
            self._answer(302, {"Location": target, "X-Repo-Commit": commit})
            return
        self._answer(200, {"X-Repo-Commit": commit}, self.hub.served_instead.get(name, content))

    def _serve_large(self, path: str) -> None:
        repo_id, commit, name = path.rsplit("/", 2)
        content = self.hub.served_instead.get(name, self.hub.repos[repo_id].commits[commit][name])
        first = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if first else 200)
        if first:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        interruption = self.hub.interruption
        if interruption is None:
            self.wfile.write(content[first:])
            return
        self.wfile.write(content[first : interruption.after_bytes])
        interruption.is_reached.set()
        if interruption.may_go_on.is_set():
            self.hub.is_down = True
            self.close_connection = True
            return
        interruption.may_go_on.wait()
        self.wfile.write(content[interruption.after_bytes :])

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing: a test looks at `requests`."""


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    as_git_stores_it = b"blob %d\0" % len(content) + content
    sibling: dict[str, Any] = {
        "rfilename": name,
        "size": len(content),
        "blobId": hashlib.sha1(as_git_stores_it, usedforsecurity=False).hexdigest(),
    }
    if _is_large(name):
        sha256 = hashlib.sha256(content).hexdigest()
        sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        sibling["blobId"] = "0" * 40  # of the pointer
    return sibling
