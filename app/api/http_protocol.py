"""How uvicorn reads HTTP with httptools, which itself sets no limit to the head of a request."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Of the request line and all headers; also of what comes after a chunked body."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses a request of which more than that has come, and neither its body nor its end."""

    _pending_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._pending_bytes += len(data)
        super().data_received(data)
        if self._pending_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request's head is larger than {MAX_HEAD_BYTES} bytes.")

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending_bytes = 0
        super().on_message_complete()
