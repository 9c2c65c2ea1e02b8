"""Which URLs are refused before anything is resolved, and which addresses afterwards."""

from ipaddress import ip_address

import pytest
from pydantic import ValidationError

from app.core.settings import Settings
from app.webhooks.targets import TargetPolicy, TargetRefusedError, WebhooksDisabledError, is_public

PUBLIC = TargetPolicy("public")

FORGED = {
    "loopback": "https://127.0.0.1/",
    "loopback as a decimal number": "https://2130706433/",
    "loopback in octal": "https://0177.0.0.1/",
    "loopback in hexadecimal": "https://0x7f.0.0.1/",
    "loopback as one hexadecimal number": "https://0x7f000001/",
    "loopback with fewer parts": "https://127.1/",
    "loopback with a dot behind it": "https://127.0.0.1./",
    "loopback in percent signs": "https://%31%32%37.0.0.1/",
    "loopback in other digits": "https://\uff11\uff12\uff17.0.0.1/",
    "zero": "https://0/",
    "private 10": "https://10.0.0.1/",
    "private 172.16": "https://172.16.0.1/",
    "private 192.168": "https://192.168.1.1/",
    "carrier-grade NAT": "https://100.64.0.1/",
    "metadata of a cloud": "https://169.254.169.254/latest/meta-data/",
    "multicast": "https://224.0.0.1/",
    "broadcast": "https://255.255.255.255/",
    "documentation": "https://192.0.2.1/",
    "loopback in IPv6": "https://[::1]/",
    "link-local in IPv6": "https://[fe80::1]/",
    "unique local in IPv6": "https://[fd00::1]/",
    "mapped loopback": "https://[::ffff:127.0.0.1]/",
    "compatible loopback": "https://[::127.0.0.1]/",
    "translated private": "https://[64:ff9b::10.0.0.1]/",
    "6to4 of private": "https://[2002:a00:1::]/",
    "Teredo": "https://[2001:0:a00:1::]/",
    "site-local": "https://[fec0::1]/",
    "without TLS": "http://hooks.example.com/",
    "SSH": "https://hooks.example.com:22/",
    "database": "https://hooks.example.com:5432/",
    "user": "https://hooks.example.com@127.0.0.1/",
    "credentials": "https://user:password@hooks.example.com/",
    "dot at the end": "https://hooks.example.com./",
    "fragment": "https://hooks.example.com/#@127.0.0.1/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://hooks.example.com/",
    "no host": "https:///",
    "no URL": "hooks.example.com",
    "line break in the host": "https://hooks.example.com%0d%0aHost:%20x/",
    "too long": f"https://hooks.example.com/{'a' * 2048}",
}


@pytest.mark.parametrize("url", FORGED.values(), ids=FORGED.keys())
def test_a_forged_url_is_refused(url: str) -> None:
    with pytest.raises(TargetRefusedError) as refused:
        PUBLIC.check_url(url)

    assert refused.value.code == "webhook_target_refused"
    assert refused.value.param == "url"


@pytest.mark.parametrize(
    ("url", "spelled"),
    [
        ("https://hooks.example.com", "https://hooks.example.com/"),
        ("https://HOOKS.example.com:443/a?b=c", "https://hooks.example.com/a?b=c"),
        ("https://hooks.example.com:8443/", "https://hooks.example.com:8443/"),
        ("https://m\u00fcnchen.example/", "https://xn--mnchen-3ya.example/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
    ],
)
def test_a_public_url_has_one_spelling(url: str, spelled: str) -> None:
    assert PUBLIC.check_url(url).url == spelled


def test_the_host_that_is_checked_is_the_host_that_is_asked() -> None:
    """Parsers disagree about this one; what counts is the part that is used."""
    target = PUBLIC.check_url("https://hooks.example.com\\@127.0.0.1/")

    assert (target.host, target.path) == ("hooks.example.com", "/@127.0.0.1/")


@pytest.mark.parametrize("url", ["https://hooks.example.com/", "nonsense"])
def test_nothing_is_allowed_until_the_operator_allows_it(url: str) -> None:
    with pytest.raises(WebhooksDisabledError, match="TUNERY_WEBHOOK_TARGETS"):
        TargetPolicy().check_url(url)


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("https://hooks.example.com/", True),
        ("https://hooks.example.com:8443/", False),
        ("http://hooks.example.com/", False),
        ("https://other.example.com/", False),
        ("https://hooks.example.com.evil.example/", False),
        ("http://receiver:8080/", True),
        ("http://receiver/", False),
        ("https://a.b.example.org/", True),
        ("https://example.org/", False),
        ("https://evilexample.org/", False),
    ],
)
def test_an_origin_allows_its_scheme_host_and_port(url: str, *, is_allowed: bool) -> None:
    origins = "https://hooks.example.com, http://receiver:8080, https://*.example.org"
    policy = TargetPolicy(origins)

    if is_allowed:
        assert policy.check_url(url).may_be_private
    else:
        with pytest.raises(TargetRefusedError):
            policy.check_url(url)


def test_a_named_host_may_be_in_a_private_network_that_is_listed() -> None:
    policy = TargetPolicy("https://hooks.corp, public", "10.1.0.0/16")
    named, other = policy.check_url("https://hooks.corp/"), policy.check_url("https://other.corp/")

    policy.check_addresses(named, [ip_address("10.1.2.3"), ip_address("8.8.8.8")])
    with pytest.raises(TargetRefusedError):
        policy.check_addresses(other, [ip_address("10.1.2.3")])
    with pytest.raises(TargetRefusedError):
        policy.check_addresses(named, [ip_address("10.2.0.1")])


def test_one_forbidden_address_refuses_the_host() -> None:
    target = PUBLIC.check_url("https://hooks.example.com/")

    with pytest.raises(TargetRefusedError):
        PUBLIC.check_addresses(target, [ip_address("8.8.8.8"), ip_address("10.0.0.1")])


def test_what_a_refusal_says_does_not_depend_on_what_exists() -> None:
    target = PUBLIC.check_url("https://wiki.corp/")
    refusals: set[str] = set()
    for addresses in ([], [ip_address("10.0.0.1")], [ip_address("127.0.0.1")]):
        with pytest.raises(TargetRefusedError) as refused:
            PUBLIC.check_addresses(target, addresses)
        refusals.add(str(refused.value))

    assert len(refusals) == 1


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700:4700::1111"])
def test_an_address_of_the_internet_is_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook_targets", "hooks.example.com"),
        ("webhook_targets", "https://hooks.example.com/path"),
        ("webhook_targets", "public, ftp://hooks.example.com"),
        ("webhook_private_networks", "10.0.0.1/8"),
        ("webhook_private_networks", "intranet"),
        ("webhook_private_networks", "0.0.0.0/0"),
        ("webhook_private_networks", "169.254.169.254/32"),
        ("webhook_private_networks", "10.0.0.0/8, ::/0"),
    ],
)
def test_a_wrong_setting_is_refused_at_the_start(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})  # pyright: ignore[reportArgumentType] - any setting


def test_settings_become_a_policy() -> None:
    settings = Settings(
        webhook_targets="public, http://receiver:8080", webhook_private_networks="10.0.0.0/8"
    )
    policy = TargetPolicy.of(settings)

    policy.check_addresses(policy.check_url("http://receiver:8080/"), [ip_address("10.0.0.1")])
    assert policy.check_url("https://anywhere.example/").may_be_private is False
