"""The OpenAPI document and the page that shows it."""

from __future__ import annotations

import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import Final

from flask import Blueprint, Flask, Response, send_from_directory
from flask_smorest import Api

from trainer_app.api.headers import DOCS_POLICY
from trainer_app.api.ids import PATTERN, RESERVED, FirstIdConverter, IdConverter
from trainer_app.api.openapi_document import complete
from trainer_app.api.schema import ErrorSchema, StrictSchema

TITLE: Final = "Model Trainer"
VERSION: Final = version("model-trainer")  # as setup.cfg has it
_ASSETS: Final = Path(__file__).parent / "static" / "swagger-ui"
_ASSET_NAMES: Final = (
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "index.css",
    "initializer.js",
    "favicon-32x32.png",
)
_DESCRIPTION: Final = """\
Train, evaluate and use small language models on your own machines.

A POST that starts work answers 202 with `Location`: follow it. Send `Idempotency-Key` to repeat \
any POST safely.

**Errors** have one body, `Error`; its `code` says what happened. What an operation answers stands \
with it. Beside that

- an address that is none of these answers 404 `NOT_FOUND`, and one of these to another method 405 \
`METHOD_NOT_ALLOWED` with `Allow`: the responses `NotFound` and `MethodNotAllowed` of the \
components;
- any address answers 400, 414, 417 and 431 to what is no well-formed HTTP, or too long.

Every GET can be sent as HEAD, for its headers alone, and OPTIONS is answered with `Allow`.

**Every answer** has `X-Request-ID`, `X-Content-Type-Options: nosniff`, \
`Referrer-Policy: no-referrer` and a `Content-Security-Policy`, and `Cache-Control: no-store` \
where it names no other. Rate limits are off unless the server is started with \
SECURITY__RATE_LIMIT: then every answer but those of the probes has `X-RateLimit-Limit`, \
`X-RateLimit-Remaining` and `X-RateLimit-Reset`.

**Times** are unix seconds, losses mean nats per predicted token.
"""


class DocumentedApi(Api):
    """flask-smorest's Api that documents our error body."""

    ERROR_SCHEMA = ErrorSchema
    DEFAULT_ERROR_RESPONSE_NAME = None  # every status is listed instead

    def _register_pagination_header(self) -> None:
        """None: a list has its page in its body, and a header's schema would be nobody's."""


def install(app: Flask) -> Api:
    """The Api to register blueprints with."""
    app.config.update(API_TITLE=TITLE, API_VERSION=VERSION, OPENAPI_VERSION="3.1.0")
    app.url_map.converters |= {"id": IdConverter, "first_id": FirstIdConverter}
    api = DocumentedApi(
        app,
        spec_kwargs={
            "info": {
                "description": _DESCRIPTION,
                "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/", "description": "The server that this document is from."}],
        },
    )
    api.register_converter(IdConverter, lambda _: _form(f"^{PATTERN}$"))
    api.register_converter(FirstIdConverter, lambda _: _form(f"^(?!{RESERVED}$){PATTERN}$"))
    return api


def _form(pattern: str) -> dict[str, str | int]:
    return {"type": "string", "pattern": pattern, "maxLength": 128}


def publish(app: Flask, api: Api, *, keyed: bool) -> None:
    """Serve the finished document at /openapi.json, and the page at /docs.

    ``keyed``: the server asks for a key.
    """
    converter = api.ma_plugin.converter
    assert converter is not None
    meanings = {
        name: inspect.cleandoc(schema.__doc__ or "")
        for (schema, *_), name in converter.refs.items()
    }
    rules = {
        name: schema.documented_rules()
        for (schema, *_), name in converter.refs.items()
        if issubclass(schema, StrictSchema)
    }
    text = json.dumps(complete(api.spec.to_dict(), meanings, rules, keyed=keyed))
    pages = Blueprint("docs", __name__)

    @pages.get("/openapi.json")
    def document() -> Response:
        return Response(text, mimetype="application/json")

    @pages.get("/docs")
    def page() -> Response:
        return _file("index.html")

    @pages.get(f"/docs/<any({', '.join(map(repr, _ASSET_NAMES))}):name>")
    def asset(name: str) -> Response:
        return _file(name)

    app.register_blueprint(pages)


def _file(name: str) -> Response:
    response = send_from_directory(_ASSETS, name, max_age=3_600)
    response.headers["Content-Security-Policy"] = DOCS_POLICY
    return response
