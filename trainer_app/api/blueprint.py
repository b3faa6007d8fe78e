"""flask-smorest's blueprint with our parser, and with what its routes document."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import unquote_to_bytes

import flask
from flask_smorest import Blueprint as SmorestBlueprint
from marshmallow import Schema, ValidationError
from webargs.flaskparser import FlaskParser

from trainer_app.api import current
from trainer_app.api.body import read_json, read_optional_json
from trainer_app.api.errors import InvalidInput
from trainer_app.api.gate import is_open
from trainer_app.api.schema import EmptySchema, details_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Request

_F = TypeVar("_F")


class StrictParser(FlaskParser):
    """Reads bodies through our gate and query strings without a guess."""

    # Each schema decides; webargs would drop unknown query parameters.
    DEFAULT_UNKNOWN_BY_LOCATION = {}  # noqa: RUF012  webargs reads it from the class

    def load_json(self, req: Request, schema: Schema) -> object:
        """The decoded body, which may be left out where it has no fields; webargs' signature."""
        read = read_json if schema.fields else read_optional_json
        return read(req, current.settings().api.max_body_bytes)

    def load_querystring(self, req: Request, schema: Schema) -> dict[str, str]:  # noqa: ARG002
        """The query parameters, each given once and in UTF-8; webargs' signature."""
        for pair in req.query_string.split(b"&"):
            if not _is_utf8(unquote_to_bytes(pair)):
                name = unquote_to_bytes(pair.partition(b"=")[0])
                raise ValidationError({name.decode("utf-8", "backslashreplace"): ["is not UTF-8"]})
        repeated = [name for name, values in req.args.lists() if len(values) > 1]
        if repeated:
            raise ValidationError({name: ["is given more than once"] for name in repeated})
        return req.args.to_dict()

    def handle_error(
        self,
        error: ValidationError,
        req: Request,  # noqa: ARG002  webargs' signature
        schema: Schema,
        *,
        error_status_code: int | None,  # noqa: ARG002
        error_headers: Mapping[str, str] | None,  # noqa: ARG002
    ) -> NoReturn:
        """Every message of marshmallow's, as details of one error."""
        assert isinstance(error.messages, dict)
        (messages,) = error.messages.values()  # by location, of which there is one
        raise InvalidInput(details_of(messages, schema)) from None


class Blueprint(SmorestBlueprint):
    """The routes of one resource; they refuse query parameters that they do not name."""

    ARGUMENTS_PARSER = StrictParser()

    def __init__(self, name: str, import_name: str, *, description: str) -> None:
        super().__init__(name, import_name, description=description)
        self.before_request(self._refuse_query)

    def _refuse_query(self) -> None:
        """Where a view names some, ``arguments`` refuses the others.

        The probes, which anybody may ask, ignore what comes with the question.
        """
        view = flask.current_app.view_functions[str(flask.request.endpoint)]
        if not is_open(flask.request.path) and not _names_query(view):
            self.ARGUMENTS_PARSER.parse(EmptySchema, location="query")

    def fails_with(self, *codes: str) -> Callable[[_F], _F]:
        """Document the error codes that a route answers beside those that every route does."""
        return self.doc(errors=list(codes))

    def leads_to(self, *links: str, **parameters: str) -> Callable[[_F], _F]:
        """Document the routes that what a POST answers can be followed to.

        ``links`` are operation ids; ``parameters`` map their path parameters to runtime
        expressions such as ``$response.body#/run_id``.
        """
        return self.doc(
            links={link: {"operationId": link, "parameters": parameters} for link in links}
        )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _names_query(view: object) -> bool:
    """Whether ``arguments`` was told of query parameters of the view."""
    documented: dict[str, dict[str, list[dict[str, object]]]] = getattr(view, "_apidoc", {})
    parameters = documented.get("arguments", {}).get("parameters", [])
    return any(parameter["in"] == "query" for parameter in parameters)
