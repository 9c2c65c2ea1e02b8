"""The dashboard: pages that read and change everything over the public API.

The pages hold no data, so they need no key. Their files lie in `app/dashboard/`.
"""

import gzip
import hashlib
import html
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, Response

from app.api.browser.security_headers import PAGE_POLICY
from app.core.errors import NotFoundError

ASSETS = "/assets"

PAGES = {
    "/": ("jobs", "Jobs"),
    "/job": ("job", "Job"),
    "/new": ("new", "New job"),
    "/sweep": ("sweep", "Sweeps"),
    "/compare": ("compare", "Compare"),
    "/try": ("try", "Try"),
    "/files": ("files", "Files"),
    "/models": ("models", "Models"),
    "/service": ("service", "Service"),
    "/sign-in": ("sign-in", "Sign in"),
}
"""The module in `app/dashboard/pages/` and the title of each page, by its path."""

# Addresses are relative, so that the pages also work below a path of a proxy.
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · Tunery</title>
<link rel="icon" href="assets/icon.svg">
<link rel="stylesheet" href="assets/vendor/uplot/uPlot.min.css">
<link rel="stylesheet" href="assets/style.css">
<link rel="stylesheet" href="assets/job.css">
<script src="assets/lib/theme.js"></script>
<script type="module" src="assets/pages/{name}.js"></script>
</head>
<body data-page="{name}">
<a class="skip" href="#main">Skip to the content</a>
<header></header>
<main id="main" aria-busy="true" tabindex="-1">
<noscript>The dashboard needs JavaScript.</noscript>
</main>
<div id="messages" role="status" aria-live="polite"></div>
</body>
</html>
"""

_FOLDER = Path(__file__).parents[2] / "dashboard"
_SERVED = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_SAMPLE = Path(__file__).parents[3] / "examples" / "lighthouse-train.jsonl"
"""Dataset that the pages offer to somebody who has none yet."""
_API = "openapi.json"
"""The description of the API, here compressed: forms are made of it."""

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class _Asset:
    body: bytes
    packed: bytes
    """The body, compressed with gzip."""
    media_type: str
    etag: str


async def _show_page(request: Request) -> HTMLResponse:
    name, title = PAGES[request.url.path]
    page = _PAGE.format(name=name, title=html.escape(title))
    return HTMLResponse(page, headers={"content-security-policy": PAGE_POLICY})


for _path in PAGES:
    router.add_api_route(_path, _show_page, methods=["GET"])


@router.get(f"{ASSETS}/{{name:path}}")
async def get_asset(name: str, request: Request) -> Response:
    asset = _describe_api(request.app) if name == _API else _read_assets().get(name)
    if asset is None:
        raise NotFoundError(f"There is no file {name[:80]!r} here.", code="unknown_url")
    headers = {"etag": asset.etag, "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    body = asset.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        body = asset.packed
    return Response(body, media_type=asset.media_type, headers=headers)


@cache
def _read_assets() -> dict[str, _Asset]:
    """All files of the dashboard, by their path below its folder. They fit in memory."""
    assets = {
        path.relative_to(_FOLDER).as_posix(): _make_asset(path.read_bytes(), _SERVED[path.suffix])
        for path in _FOLDER.rglob("*")
        if path.suffix in _SERVED
    }
    assets[f"sample/{_SAMPLE.name}"] = _make_asset(_SAMPLE.read_bytes(), "application/jsonl")
    return assets


@cache
def _describe_api(app: FastAPI) -> _Asset:
    return _make_asset(json.dumps(app.openapi()).encode(), "application/json")


def _make_asset(body: bytes, media_type: str) -> _Asset:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _Asset(body, gzip.compress(body, mtime=0), media_type, etag)
