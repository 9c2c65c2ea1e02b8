"""Signs requests that obstore does not offer, with version 4 of AWS's signatures.

They are URLs whose query has the signature. `obstore.sign` makes such URLs too, but without
parameters of the request, and a download needs its filename in them.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, urlsplit

from app.core.clock import utc_now
from app.core.settings.store_urls import BucketAddress
from app.core.storage.s3.access import S3Access

_ALGORITHM = "AWS4-HMAC-SHA256"


SIGNED_FOR_S = 300
"""Time for which a request that this process makes at once is signed, in seconds: clocks differ."""


class Signer:
    """Signs requests to one bucket. Only for `access` with keys."""

    def __init__(self, address: BucketAddress, access: S3Access) -> None:
        self._address = address
        self._access = access

    @property
    def prefix(self) -> str:
        """What every key in the bucket begins with: empty, or it ends with a slash."""
        return f"{self._address.prefix}/" if self._address.prefix else ""

    def sign(
        self,
        method: str,
        key: str | None,
        query: Mapping[str, str],
        *,
        lifetime_s: int = SIGNED_FOR_S,
    ) -> str:
        """A URL with which anybody may make this one request for `lifetime_s` seconds.

        Args:
            method: of HTTP.
            key: of a blob. None means the bucket.
            query: parameters of the request.
            lifetime_s: at most a week, as S3 demands.
        """
        url = self._access.endpoint or f"https://s3.{self._access.region}.amazonaws.com"
        path = f"/{self._address.bucket}" + ("" if key is None else f"/{self.prefix}{key}")
        return sign_url(
            method, url + path, query, access=self._access, now=utc_now(), lifetime_s=lifetime_s
        )


def sign_url(
    method: str,
    url: str,
    query: Mapping[str, str],
    *,
    access: S3Access,
    now: datetime,
    lifetime_s: int,
) -> str:
    """A URL with which anybody may make this one request for `lifetime_s` seconds.

    Args:
        method: of HTTP.
        url: of the object or the bucket; its path is encoded here.
        query: parameters of the request.
        access: has keys.
        now: in UTC.
        lifetime_s: at most a week, as S3 demands.
    """
    parts, day = urlsplit(url), f"{now:%Y%m%d}"
    scope = f"{day}/{access.region}/s3/aws4_request"
    signed = {
        **query,
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{access.key_id}/{scope}",
        "X-Amz-Date": f"{now:%Y%m%dT%H%M%SZ}",
        "X-Amz-Expires": str(lifetime_s),
        "X-Amz-SignedHeaders": "host",
    }
    if access.token:
        signed["X-Amz-Security-Token"] = access.token
    path = quote(parts.path)
    encoded = sorted((quote(name, safe=""), quote(text, safe="")) for name, text in signed.items())
    asked = "&".join(f"{name}={text}" for name, text in encoded)
    request = f"{method}\n{path}\n{asked}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    digest = hashlib.sha256(request.encode()).hexdigest()
    to_sign = f"{_ALGORITHM}\n{signed['X-Amz-Date']}\n{scope}\n{digest}"
    key = f"AWS4{access.secret}".encode()
    for part in (day, access.region, "s3", "aws4_request", to_sign):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return f"{parts.scheme}://{parts.netloc}{path}?{asked}&X-Amz-Signature={key.hex()}"
