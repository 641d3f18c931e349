"""The dashboard's files, each with a content security policy that allows only this daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response

from fleet_forecast.serving.dashboard import FILES, FOLDER

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


def _sender(file: Path, media_type: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def send_file() -> Response:
        content = await asyncio.to_thread(file.read_bytes)
        return Response(content, headers={"content-security-policy": POLICY, "content-type": media_type})

    return send_file


for _path, (_name, _media_type) in FILES.items():
    router.api_route(_path, methods=["GET", "HEAD"])(_sender(FOLDER / _name, _media_type))
