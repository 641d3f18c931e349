"""The route that explains a server's forecast."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response

from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.serving.daemon import daemon_of, json_answer, no_forecast, try_again
from fleet_forecast.serving.forecasts.explanations import ForecastReplacedError, explain_forecast
from fleet_forecast.serving.forecasts.selection import Selection, horizon_seconds, refuse_beyond, selected_steps
from fleet_forecast.serving.routes import schemas as documents

MAX_WAITING_EXPLANATIONS = 4  # they take turns with the cycle's chunks, one at a time: more would hold it up


def add_explain_routes(app: FastAPI) -> None:
    """Add the route to the application."""
    places = asyncio.Semaphore(MAX_WAITING_EXPLANATIONS)

    @app.get(
        "/api/v1/servers/{name}/explain",
        tags=["forecasts"],
        summary="What the server's forecast rests on: the network's weights of variables, and attention by lag",
        responses=documents.EXPLANATION,
    )
    async def explain(
        request: Request,
        name: str,
        horizon: Annotated[list[str] | None, Query(description="only these distances, such as 15m or 8h")] = None,
    ) -> Response:
        daemon = daemon_of(request)
        distances = None if horizon is None else tuple(horizon_seconds(text) for text in horizon)
        forecast = daemon.forecasts.snapshot.forecasts.get(name)
        if forecast is None:
            return no_forecast(daemon, name)
        selection = Selection(horizon_seconds=distances)
        refuse_beyond(forecast, selection)
        steps = selected_steps(forecast, selection)
        if places.locked():
            return try_again("other explanations wait already")
        async with places:
            work = daemon.forecasts, forecast, steps
            try:
                document = await asyncio.get_running_loop().run_in_executor(
                    daemon.forecasts.worker, explain_forecast, *work
                )
            except ForecastReplacedError:
                return try_again("a new forecast of this server is being made")
            except ModelError as problem:
                return json_answer({"detail": str(problem)}, 409)
        return json_answer(document)
