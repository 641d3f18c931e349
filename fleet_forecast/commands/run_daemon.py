"""The daemon and the check of its settings: tft_inference.py --daemon, --check-config."""

from __future__ import annotations

import json
import logging
import os
import sys
import time

from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.inference.model_directory import read_config, verify
from fleet_forecast.serving.app import create_app
from fleet_forecast.serving.export.series import cardinality_text
from fleet_forecast.serving.forecasts.snapshot import ModelView
from fleet_forecast.serving.http.server import serve
from fleet_forecast.serving.lifespan import DEFAULT_STEP_SECONDS
from fleet_forecast.serving.monitoring.exposition import check_exposed_names
from fleet_forecast.serving.monitoring.log import log_as_json
from fleet_forecast.serving.referenced_files import ForecastTarget, read_referenced_files
from fleet_forecast.serving.settings import Settings, SettingsError
from fleet_forecast.sources.probe import probe, probe_document, probe_text
from fleet_forecast.usage import UsageError
from server_profiles import ProfileRules


def run_daemon(settings: Settings) -> bool:
    """Serve until SIGTERM or Ctrl-C; whether the daemon could start."""
    check_exposed_names(fleet_in_use().metrics)
    files = read_referenced_files(settings, os.environ)
    if not settings.model.exists():
        raise SettingsError(
            f"model: {settings.model} does not exist; train one with tft_trainer.py, or give --model DIR"
        )
    log_as_json()
    # The interpreter switches threads at this interval, so that the event loop answers within milliseconds.
    sys.setswitchinterval(0.0001)
    scheme = "http" if settings.tls_certificate is None else "https"
    logging.getLogger(__name__).info(
        "start", extra={"address": f"{scheme}://{_in_address(settings.host)}:{settings.port}"}
    )
    app = create_app(settings, files)
    if serve(app, settings, app.state.certificate):
        return True
    print(
        f"error: the daemon could not start on {settings.host}:{settings.port}; the log above has the reason. "
        "If the address is in use, stop what listens there or give another --port",
        file=sys.stderr,
    )
    return False


def _in_address(host: str) -> str:
    """A host name as addresses have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def check_settings(settings: Settings, rules: ProfileRules, ask_prometheus: bool) -> bool:
    """Read the files that the settings name and print the settings as JSON; whether all queries succeeded.

    With a database for forecasts the number of its series goes to stderr.
    ask_prometheus: run each query once; what they give goes to stderr as text, and as the last line to stdout as JSON.
    """
    files = read_referenced_files(settings, os.environ)
    print(settings.model_dump_json(indent=2))
    if files.forecasts is not None:
        print(_export_text(files.forecasts, settings), file=sys.stderr)
    if not ask_prometheus:
        return True
    if not files.prometheus:
        raise UsageError("--probe: there is no Prometheus to ask; give --prometheus URL or --connections FILE")
    found = probe(files.prometheus, rules, time.time(), DEFAULT_STEP_SECONDS)
    print(probe_text(found), file=sys.stderr)
    print(json.dumps(probe_document(found)))
    return not found.failed


def _export_text(target: ForecastTarget, settings: Settings) -> str:
    """The number of series that the model in use would write. Raises ModelError."""
    if not settings.model.exists():
        address = target.access.address
        return f"forecasts to {address}: model {settings.model} does not exist; train one to see its series"
    directory = verify(settings.model)
    config = read_config(directory)
    model = ModelView.of_config(directory.name, config)
    return cardinality_text(target.table, model, config.horizon_steps, settings.max_servers)
