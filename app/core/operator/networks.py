"""Where an operator may send webhooks: how the settings write it, and what is never allowed."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network

PUBLIC_WEBHOOKS = "public"
"""Entry of `webhook_targets` that allows the internet."""

WEBHOOK_ORIGIN = re.compile(
    r"(?P<scheme>https?)://(?P<host>(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*)(:(?P<port>[0-9]{1,5}))?"
)
"""Any other entry of `webhook_targets`. IPv6 addresses need a name."""

NEVER_REACHED: Sequence[Network] = [
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
"""Networks that `webhook_private_networks` must not contain, not even a part of them."""
