"""The server of the page: its API (routes/) and its files, with what every answer has in common.

    app = make_app(Opening("photos", open_it), Reach().access())

Answers are JSON (OpenAPI at /api/openapi.json), pictures are JPEG made again from pixels. While the collection is being
opened, /api/status says so, and other requests wait for it for a while. This file must not import torch, nor what
imports it, before it is needed: the page answers while torch is being loaded.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from instdisc.errors import InputError
from instdisc.serve import routes
from instdisc.serve.access import Access
from instdisc.serve.limits import Limits
from instdisc.serve.models import Refusal, readable
from instdisc.serve.opening import Opening
from instdisc.serve.security import Security
from instdisc.serve.session import Session

PAGE = Path(__file__).parent / "page"
_FAULTS = 10  # of a request, that its refusal names


def make_app(opening: Opening, access: Access) -> Security:
    """The whole server, an ASGI application. access: who may ask, and how."""
    app = FastAPI(
        title="instdisc",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        servers=[{"url": quote(access.base_path)}] if access.base_path else None,
        redirect_slashes=False,  # to addresses that a proxy may not know
        responses={code: {"model": Refusal} for code in (400, 404, 408, 413, 503)},
    )
    app.state.session = Session(opening)

    @app.exception_handler(InputError)
    async def refused(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": readable(str(error))}, 400)

    @app.exception_handler(TimeoutError)
    async def opening_still(_: Request, __: TimeoutError) -> JSONResponse:
        return JSONResponse({"detail": "The collection is still being opened: try again."}, 503, {"retry-after": "5"})

    @app.exception_handler(RequestValidationError)
    async def not_as_described(_: Request, error: RequestValidationError) -> JSONResponse:
        """Without what was given, as FastAPI would have it: that may be what JSON can't carry, or very long."""
        faults = [{name: one[name] for name in ("loc", "msg", "type")} for one in error.errors()[:_FAULTS]]
        return JSONResponse({"detail": faults}, 422)

    for view in pkgutil.iter_modules(routes.__path__, f"{routes.__name__}."):
        app.include_router(import_module(view.name).router)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    return Security(Limits(app), access)
