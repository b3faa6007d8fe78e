"""What every answer tells a browser: believe the content type, keep nothing, frame nothing."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from flask import Flask, Response

# The documentation page loads its own files alone. Swagger UI sets style attributes, which need
# 'unsafe-inline'; scripts do not get it.
DOCS_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DATA_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"


def install(app: Flask) -> None:
    """Add the headers to every answer that does not bring its own."""
    app.after_request(_add)


def _add(response: Response) -> Response:
    headers = response.headers
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers.setdefault("Content-Security-Policy", _DATA_POLICY)
    headers.setdefault("Cache-Control", "no-store")
    if response.status_code == HTTPStatus.NO_CONTENT:
        headers.pop("Content-Type", None)  # Flask's default: there is nothing that it would tell of
    return response
