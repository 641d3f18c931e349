"""The check of the daemon's settings: tft_inference.py --check-config."""

from __future__ import annotations

import json
import os
import sys
import time

from fleet_forecast.inference.model_directory import present_model, read_config, verify
from fleet_forecast.serving.export.series import cardinality_text
from fleet_forecast.serving.forecasts.snapshot import ModelView
from fleet_forecast.serving.lifespan import DEFAULT_STEP_SECONDS
from fleet_forecast.serving.referenced_files import ForecastTarget, read_referenced_files
from fleet_forecast.serving.settings import Settings
from fleet_forecast.sources.probe import probe, probe_document, probe_text
from fleet_forecast.usage import UsageError
from server_profiles import ProfileRules


def check_settings(settings: Settings, rules: ProfileRules, ask_prometheus: bool) -> bool:
    """Read the files that the settings name, print the settings as JSON; returns whether all queries returned series.

    With a database for forecasts the number of its series is printed to stderr.
    ask_prometheus: run each query once and print the results, to stderr as text and to stdout as JSON in the last line.
    """
    files = read_referenced_files(settings, os.environ)
    print(settings.model_dump_json(indent=2))
    if files.forecasts is not None:
        print(_export_text(files.forecasts, settings), file=sys.stderr)
    if not ask_prometheus:
        return True
    if not files.prometheus:
        raise UsageError("--probe: there is no Prometheus to query; give --prometheus URL or --connections FILE")
    found = probe(files.prometheus, rules, time.time(), DEFAULT_STEP_SECONDS)
    print(probe_text(found), file=sys.stderr)
    print(json.dumps(probe_document(found)))
    return not found.failed


def _export_text(target: ForecastTarget, settings: Settings) -> str:
    """The number of series that the model in use would write. Raises ModelError."""
    model_dir = present_model(settings.model, settings.model_is_chosen)
    if not model_dir.exists():
        address = target.access.address
        return f"forecasts to {address}: model {model_dir} does not exist; train one to see its series"
    directory = verify(model_dir)
    config = read_config(directory)
    model = ModelView.of_config(directory.name, config)
    return cardinality_text(target.table, model, config.horizon_steps, settings.max_servers)
