"""The least that a server can do: one Starlette route, the same headers and bytes, no logic.  ``sdc bench origin`` compares with it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def application(body: bytes, headers: dict[str, str]) -> Starlette:
    """Answers everything with these, or 304 to whoever brings a tag."""

    async def reply(request: Request) -> Response:
        if "if-none-match" in request.headers:
            return Response(None, 304, headers)
        return Response(body, 200, headers)

    return Starlette(routes=[Route("/{path:path}", reply)])


if __name__ == "__main__":
    port = int(sys.argv[sys.argv.index("--port") + 1])
    app = application(Path(os.environ["BARE_BODY"]).read_bytes(), json.loads(os.environ["BARE_HEADERS"]))
    uvicorn.run(app, port=port, log_config=None, access_log=False, server_header=False)
