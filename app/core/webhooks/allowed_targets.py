"""What the operator may write in TUNERY_WEBHOOK_TARGETS and TUNERY_WEBHOOK_PRIVATE_NETWORKS."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network

DEFAULT_PORTS = {"https": 443, "http": 80}
"""The schemes that webhooks can have, with the port of a URL that names none."""

_PUBLIC = "public"
_ORIGIN = re.compile(
    r"(?P<scheme>https?)://(?P<host>(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*)(:(?P<port>[0-9]{1,5}))?"
)
_NEVER: Sequence[Network] = [
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",  # link-local; a cloud's metadata
        "224.0.0.0/3",
        "::/128",
        "::ffff:0:0/96",  # IPv4 in another spelling
        "64:ff9b::/96",
        "fe80::/10",
        "ff00::/8",
    )
]
"""Networks that must not be listed, not even a part of them."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port. A host that begins with `*.` stands for all names below it."""

    scheme: str
    host: str
    port: int

    def matches(self, scheme: str, host: str, port: int) -> bool:
        is_host = host == self.host
        if self.host.startswith("*."):
            is_host = host.endswith(self.host[1:])
        return is_host and (scheme, port) == (self.scheme, self.port)


@dataclass(frozen=True, slots=True)
class AllowedTargets:
    has_public: bool
    """Whether the whole internet is allowed."""
    origins: Sequence[Origin]


def parse_targets(text: str) -> AllowedTargets:
    """Parse a list of targets.

    Raises:
        ValueError: an entry is neither `public` nor an origin.
    """
    entries = _split(text)
    origins = [_parse_origin(entry) for entry in entries if entry != _PUBLIC]
    return AllowedTargets(_PUBLIC in entries, origins)


def parse_networks(text: str) -> list[Network]:
    """Parse a list of private networks.

    Raises:
        ValueError: an entry is no network, or contains addresses that are never allowed.
    """
    networks = [ip_network(entry) for entry in _split(text)]
    for network in networks:
        if any(network.overlaps(never) for never in _NEVER if never.version == network.version):
            raise ValueError(
                f"{network} contains addresses that no webhook may be sent to, such as that of a "
                "cloud's metadata; name smaller networks"
            )
    return networks


def _parse_origin(text: str) -> Origin:
    found = _ORIGIN.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text[:80]!r} is neither 'public' nor an origin in lower case and without a path, "
            "such as https://hooks.example.com or https://*.example.com:8443"
        )
    default = DEFAULT_PORTS[found["scheme"]]
    return Origin(found["scheme"], found["host"], int(found["port"] or default))


def _split(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]
