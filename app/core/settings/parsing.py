"""How settings are checked whose text something else parses."""

from collections.abc import Callable

from pydantic import AfterValidator, SecretStr

from app.core.sampling.engines import parse_engines


def parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    """Refuse a text that `parse` refuses, and keep any other as it is."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def check_engines(secret: SecretStr) -> SecretStr:
    parse_engines(secret.get_secret_value())
    return secret
