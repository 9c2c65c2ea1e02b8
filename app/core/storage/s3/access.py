"""How a process reaches S3: endpoint, region and keys, from the variables that all tools read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class S3Access:
    """Endpoint, region and keys. No text of it shows the secret."""

    endpoint: str | None
    """URL of a server that speaks S3. None means AWS."""
    region: str
    key_id: str | None
    """None where the machine has a role, whose keys obstore asks for and renews."""
    secret: str | None = field(repr=False)
    token: str | None = field(repr=False)

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> "S3Access":
        return cls(
            endpoint=variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL"),
            region=variables.get("AWS_REGION")
            or variables.get("AWS_DEFAULT_REGION")
            or _DEFAULT_REGION,
            key_id=variables.get("AWS_ACCESS_KEY_ID") or None,
            secret=variables.get("AWS_SECRET_ACCESS_KEY") or None,
            token=variables.get("AWS_SESSION_TOKEN") or None,
        )
