"""`/docs`: Swagger UI, offline and under a strict content security policy.

FastAPI's own page has its script inline. Here it is a file, so that the policy can forbid inline
scripts, and with them any that a text of the API could smuggle in.
"""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

from app.api.browser.security_headers import PAGE_POLICY

PATH = "/docs"
ASSETS = f"{PATH}/assets"

# Addresses are relative, so that the page also works below a path of a proxy.
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tunery</title>
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
<link rel="icon" href="docs/assets/favicon.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/page.js"></script>
</body>
</html>
"""

# A validator would send the document to another server.
_SCRIPT = """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null,
});
"""

router = APIRouter(include_in_schema=False)


@router.get(PATH)
async def show_page() -> HTMLResponse:
    return HTMLResponse(_PAGE, headers={"content-security-policy": PAGE_POLICY})


@router.get(f"{PATH}/page.js")
async def get_script() -> Response:
    return Response(_SCRIPT, media_type="text/javascript")
