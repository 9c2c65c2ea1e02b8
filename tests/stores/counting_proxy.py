"""A proxy in front of an S3 server that counts the bytes of each object that it passes on."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CHUNK = 64 * 1024
_DROPPED = frozenset({"connection", "transfer-encoding", "content-length"})


class CountingProxy:
    """Passes every request on.

    Attributes:
        endpoint: its URL.
        bytes: bytes of objects that were read, by path.
        stall_after: number of bytes of all objects after which answers wait. None for never.
        has_stalled: set once an answer waits.
    """

    def __init__(self, target_port: int) -> None:
        self.bytes = Counter[str]()
        self.stall_after: int | None = None
        self.has_stalled = threading.Event()
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(self, target_port)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["CountingProxy"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.release()
            self._server.shutdown()
            self._server.server_close()

    def release(self) -> None:
        """Let answers that wait go on."""
        self.stall_after = None
        self._released.set()

    def forget(self) -> None:
        """Count from zero again, and nothing of requests that have begun."""
        self.bytes = Counter()

    def count(self, counted: Counter[str], path: str, size: int) -> None:
        """Count a part of an answer, in what `bytes` was when the request began."""
        with self._lock:
            counted[path] += size
        if self.stall_after is not None and self.bytes.total() > self.stall_after:
            self.has_stalled.set()
            self._released.wait(60)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: CountingProxy, target_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self.target_port = target_port


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        """Read one request, and pass it on whatever its method is."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        upstream = HTTPConnection("127.0.0.1", self.server.target_port, timeout=60)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            self._pass_back(upstream.getresponse())
        except OSError:
            self.close_connection = True
        finally:
            upstream.close()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""

    def _pass_back(self, answer: HTTPResponse) -> None:
        proxy, path = self.server.proxy, self.path.partition("?")[0]
        counted = proxy.bytes
        known = answer.getheader("content-length")
        content = answer.read() if known is None else b""  # in chunks
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _DROPPED:
                self.send_header(name, value)
        self.send_header("content-length", known or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        is_object = self.command == "GET" and "list-type" not in self.path
        is_read = is_object and answer.status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}
        while chunk := answer.read(_CHUNK):
            if is_read:
                proxy.count(counted, path, len(chunk))
            self.wfile.write(chunk)
