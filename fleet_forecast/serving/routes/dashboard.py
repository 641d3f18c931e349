"""The dashboard's three files, each with a policy that allows nothing from elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import FastAPI, Response

from fleet_forecast.serving.dashboard import FILES, FOLDER

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_dashboard_routes(app: FastAPI) -> None:
    """Add the routes to the application."""
    for path, (name, media_type) in FILES.items():
        _add_file(app, path, FOLDER / name, media_type)


def _add_file(app: FastAPI, path: str, file: Path, media_type: str) -> None:
    @app.get(path, include_in_schema=False)
    async def dashboard_file() -> Response:
        content = await asyncio.to_thread(file.read_bytes)
        return Response(content, headers={"content-security-policy": POLICY, "content-type": media_type})
