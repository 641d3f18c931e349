"""Variable and attention weights of one server's forecast: tft_inference.py --input PATH --explain NAME."""

from __future__ import annotations

import argparse
import json

from fleet_forecast.commands.file_input import load_input
from fleet_forecast.inference.batch import engine_inputs, last_origins
from fleet_forecast.inference.explanation_document import as_text, weights_document
from fleet_forecast.serving.settings import Settings
from fleet_forecast.usage import UsageError
from server_profiles import ProfileRules


def explain_server(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> None:
    """Print the variable and attention weights of one server's forecast from its last measurement."""
    if arguments.input is None:
        raise UsageError("--input is missing; --explain needs the server's metrics")
    engine, grid = load_input(arguments.input, settings, rules)
    origins = [origin for origin in last_origins(grid) if grid.servers[origin.server] == arguments.explain]
    if not origins:
        raise UsageError(
            f"--explain {arguments.explain}: the data has no measurement of a server with this name; give another name"
        )
    inputs = engine_inputs(engine, grid, grid.peers(), origins)
    found = engine.explain(inputs.history, inputs.profiles, inputs.origins, peers=inputs.peers)
    weights = weights_document(found, engine.variables, grid.step_seconds)
    print(as_text(weights))
    summary = {
        "server_name": arguments.explain,
        "model": engine.model_id,
        "profile": inputs.profiles[0],
        "origin": f"{inputs.origins[0]}Z",
        **weights,
    }
    print(json.dumps(summary))
