"""Where webhooks may go. A user chooses the URL, so it must not reach what only this machine can.

A URL is parsed once, as browsers do, and only the parts are used from then on: no two parsers can
disagree about its host. An address is checked each time, right before the connection to it.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import Url

from app.core.errors import InvalidRequestError
from app.core.settings import Settings
from app.core.webhooks.allowed_targets import DEFAULT_PORTS, parse_networks, parse_targets

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL = 2048
_PUBLIC_PORTS = (443, 8443)

_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        "192.88.99.0/24",  # relays to 6to4
        "2001::/23",  # Teredo and other addresses that contain one of another kind
        "2002::/16",  # 6to4: contains an IPv4 address
        "3fff::/20",  # for documentation
    )
]
"""Networks that `ipaddress` of some Python version takes for public."""


class TargetRefusedError(InvalidRequestError):
    """A URL or an address that no webhook may be sent to. The message never repeats a query."""

    code = "webhook_target_refused"


class WebhooksDisabledError(InvalidRequestError):
    code = "webhooks_disabled"


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a URL that has been checked, except for the addresses of its host."""

    url: str
    """The URL in its one spelling."""
    scheme: str
    host: str
    """A name in ASCII, or an address; an IPv6 address has its brackets."""
    port: int
    path: str
    """Path and query."""
    may_be_private: bool
    """Whether the operator has named the host, so that it may be in a private network."""


class TargetPolicy:
    """What the operator allows.

    Args:
        targets: as in TUNERY_WEBHOOK_TARGETS.
        private_networks: as in TUNERY_WEBHOOK_PRIVATE_NETWORKS.
    """

    def __init__(self, targets: str = "", private_networks: str = "") -> None:
        self._allowed = parse_targets(targets)
        self._private_networks = parse_networks(private_networks)

    @classmethod
    def of(cls, settings: Settings) -> "TargetPolicy":
        return cls(settings.webhook_targets, settings.webhook_private_networks)

    @property
    def is_on(self) -> bool:
        """Whether any target is allowed."""
        return self._allowed.has_public or bool(self._allowed.origins)

    def check_url(self, url: str) -> Target:
        """Parse a URL, and check everything except for the addresses that a name will have.

        Raises:
            WebhooksDisabledError: the operator allows no targets.
            TargetRefusedError: the operator does not allow this one.
        """
        if not self.is_on:
            raise WebhooksDisabledError(
                "Webhooks are off. The operator of this service can allow targets with "
                "TUNERY_WEBHOOK_TARGETS.",
            )
        target = self._allow(_parse(url))
        address = _literal(target.host)
        if address is not None:
            self.check_addresses(target, [address])
        return target

    def check_addresses(self, target: Target, addresses: Sequence[Address]) -> None:
        """Check every address of a target's host. One forbidden address refuses them all.

        Raises:
            TargetRefusedError: an address is not allowed, or there is none.
        """
        if not addresses or not all(self._is_allowed(target, each) for each in addresses):
            # The same words for a name without addresses: who asks must not learn what exists.
            raise _refused(f"'{target.host}' has no address that webhooks may be sent to.")

    def _allow(self, url: Url) -> Target:
        scheme, host, port = url.scheme, url.host or "", url.port or 0
        is_named = any(origin.matches(scheme, host, port) for origin in self._allowed.origins)
        is_public = self._allowed.has_public and scheme == "https" and port in _PUBLIC_PORTS
        if not (is_named or is_public):
            raise _refused(
                f"The operator of this service does not allow webhooks to '{scheme}' on port "
                f"{port} of '{host}'; see TUNERY_WEBHOOK_TARGETS."
            )
        return Target(
            url=str(url),
            scheme=scheme,
            host=host,
            port=port,
            path=(url.path or "/") + (f"?{url.query}" if url.query else ""),
            may_be_private=is_named,
        )

    def _is_allowed(self, target: Target, address: Address) -> bool:
        is_private = target.may_be_private and any(
            address in network for network in self._private_networks
        )
        return is_private or is_public(address)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet alone, and contains no other address."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_IPV6:
        return False  # also 64:ff9b::/96 and ::ffff:0:0/96, which contain an IPv4 address
    if address.is_multicast or any(address in network for network in _NOT_PUBLIC):
        return False
    return address.is_global


def _parse(url: str) -> Url:
    """Parse a URL as browsers do, which turns every odd spelling of an address into the usual."""
    if len(url) > MAX_URL:
        raise _refused(f"The URL has more than {MAX_URL} characters.")
    try:
        parsed = Url(url)
    except ValidationError as error:
        raise _refused("It is not a URL, such as https://hooks.example.com/tunery.") from error
    host = parsed.host or ""
    if parsed.scheme not in DEFAULT_PORTS or not host:
        raise _refused("It must begin with https:// and a host.")
    if parsed.username is not None or parsed.password is not None:
        raise _refused("It must not contain a user name or a password.")
    if parsed.fragment is not None:
        raise _refused("It must not contain a '#'.")
    if host.endswith("."):
        raise _refused("Its host must not end with a dot.")
    return parsed


def _refused(message: str) -> TargetRefusedError:
    return TargetRefusedError(f"The webhook's URL is refused. {message}", param="url")


def _literal(host: str) -> Address | None:
    """The address that a host is, or None if it is a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
