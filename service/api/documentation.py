"""The OpenAPI document and its page: FastAPI's, with our errors as they are.  Knows nothing of what the routes do.

FastAPI takes every reply with a model for ``application/json`` and adds its own 422 for parameters; ours are problems, and 400.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from service.api.problems import PROBLEM_TYPE

PROBLEM = {
    "description": "A problem (RFC 9457): `type` is for programs, `detail` for people.",
    "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
PLACE = b'<div id="swagger-ui">'
"""of the page, where its scripts put what they make"""
NOT_FOR_US = ("HTTPValidationError", "ValidationError")
"""schemas of replies that FastAPI would give"""


UNTIL_THEN = b"""<p>What is here to be seen comes by scripts from cdn.jsdelivr.net. Where those do not come,
<a href="/openapi.json">/openapi.json</a> says the same as data.</p>"""


def install(app: FastAPI) -> None:
    """Make the document when it is first asked for, and a page of it at /docs that is not empty without the internet."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(openapi_url="/openapi.json", title=f"{app.title} {app.version}")
        return HTMLResponse(bytes(page.body).replace(PLACE, PLACE + UNTIL_THEN))

    theirs = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _mended(theirs())
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _mended(document: dict[str, Any]) -> dict[str, Any]:
    for operations in document["paths"].values():
        for operation in operations.values():
            replies = operation["responses"]
            theirs = replies.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
            if theirs.endswith(NOT_FOR_US[0]):
                del replies["422"]
            for status in [status for status in replies if status >= "400"]:
                replies[status] = PROBLEM | {"description": replies[status]["description"]}
            replies["default"] = PROBLEM
            operation["security"] = [{}, {"key": []}]
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = _given(parameter["schema"])
    components = document["components"]
    for name in NOT_FOR_US:
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "Where the service asks for keys."}}
    return document


def _given(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that is there: in an address nothing can be null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return {key: value for key, value in schema.items() if key != "anyOf"} | kinds[0] if len(kinds) == 1 else schema
