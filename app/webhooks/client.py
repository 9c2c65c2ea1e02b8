"""Sends one request to a webhook endpoint: to a checked address, within a time limit, once.

The connection goes to the very address that was checked, so a name that changes its address in
between gains nothing. The certificate is still that of the name. httpcore2 follows no redirect and
knows no proxy. Nothing of an answer is read but its head.
"""

import ssl
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from threading import BoundedSemaphore
from typing import Any

import httpcore2
from httpcore2 import NetworkBackend, NetworkStream

from app.core.clock import steady_s
from app.core.errors import TooManyWebhookTestsError
from app.webhooks.resolving import Resolve, Resolver, resolve
from app.webhooks.targets import Address, Target, TargetPolicy

TOTAL_S = 10.0
"""Limit for one attempt, from resolving the name to the head of the answer, in seconds."""
CONNECT_S = 5.0
"""Limit for each connection that is tried, in seconds."""
_MAX_ADDRESSES = 3
"""How many of a host's addresses are tried."""

MAX_TESTS = 4
"""Maximum number of tests at once in a process: each keeps one of its few threads waiting."""


class DeliveryError(Exception):
    """The request got no answer. The message says why, in words for the owner of the endpoint."""


class WebhookClient:
    """Sends requests to the targets that a policy allows.

    Args:
        resolve: replaces the system's name resolution.
        tls: replaces the system's certificate authorities.
    """

    def __init__(
        self,
        policy: TargetPolicy,
        *,
        resolve: Resolve = resolve,
        tls: ssl.SSLContext | None = None,
        total_s: float = TOTAL_S,
    ) -> None:
        self.policy = policy
        self._resolver = Resolver(resolve)
        self._tests = BoundedSemaphore(MAX_TESTS)
        self._given_tls = tls
        self._total_s = total_s

    @cached_property
    def _tls(self) -> ssl.SSLContext:  # made when first used: it reads all authorities
        return self._given_tls or httpcore2.default_ssl_context()

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Send a request, and return the status of the answer.

        Raises:
            TargetRefusedError: the policy does not allow this URL, or its addresses of now.
            DeliveryError: there was no answer.
        """
        ends_at_s = steady_s() + self._total_s
        target = self.policy.check_url(url)
        addresses = self._look_up(target)
        self.policy.check_addresses(target, addresses)
        backend = _PinnedBackend(addresses, ends_at_s)
        try:
            with (
                httpcore2.ConnectionPool(ssl_context=self._tls, network_backend=backend) as pool,
                pool.stream(
                    "POST",
                    _http_url(target),
                    headers=list(headers.items()),
                    content=body,
                    extensions={"sni_hostname": target.host.strip("[]")},
                ) as answer,
            ):
                return answer.status
        except httpcore2.TimeoutException as error:
            raise DeliveryError("No answer in time.") from error
        except httpcore2.ConnectError as error:
            raise DeliveryError(f"No connection: {error}.") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise DeliveryError(f"No complete answer in HTTP: {error}.") from error

    def post_test(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Send a request while a caller waits, and return the status of the answer.

        Raises:
            TooManyWebhookTestsError: as many callers wait already as may.
            TargetRefusedError, DeliveryError: as `post`.
        """
        if not self._tests.acquire(blocking=False):
            raise TooManyWebhookTestsError(
                f"{MAX_TESTS} tests of webhooks are running. Nothing was sent; send the request "
                "again in a few seconds."
            )
        try:
            return self.post(url, headers, body)
        finally:
            self._tests.release()

    def _look_up(self, target: Target) -> Sequence[Address]:
        try:
            return self._resolver.look_up(target.host, target.port, within_s=self._total_s)
        except TimeoutError as error:
            raise DeliveryError(f"The name {target.host} was not resolved in time.") from error


def _http_url(target: Target) -> httpcore2.URL:
    """From the parts, so that httpcore2 does not parse the URL in its own way."""
    return httpcore2.URL(
        scheme=target.scheme, host=target.host, port=target.port, target=target.path
    )


class _PinnedBackend(NetworkBackend):
    """Connects to given addresses, whatever the host's name may mean by now."""

    def __init__(self, addresses: Sequence[Address], ends_at_s: float) -> None:
        self._addresses = addresses
        self._ends_at_s = ends_at_s
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> NetworkStream:
        failure: Exception | None = None
        for address in self._addresses[:_MAX_ADDRESSES]:
            limit_s = min(CONNECT_S, _left_s(self._ends_at_s))
            try:
                stream = self._sockets.connect_tcp(str(address), port, timeout=limit_s)
                return _TimedStream(stream, self._ends_at_s)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError("the host has no address")


class _TimedStream(NetworkStream):
    """A connection whose limit is for all that it does together, not for each wait."""

    def __init__(self, stream: NetworkStream, ends_at_s: float) -> None:
        self._stream = stream
        self._ends_at_s = ends_at_s

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left_s(self._ends_at_s))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left_s(self._ends_at_s))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> NetworkStream:
        limit_s = _left_s(self._ends_at_s)
        stream = self._stream.start_tls(ssl_context, server_hostname, limit_s)
        return _TimedStream(stream, self._ends_at_s)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left_s(ends_at_s: float) -> float:
    left_s = ends_at_s - steady_s()
    if left_s <= 0:
        raise httpcore2.ReadTimeout
    return left_s
