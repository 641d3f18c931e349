"""The daemon: tft_inference.py --daemon."""

from __future__ import annotations

import logging
import os
import sys

from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.inference.model_directory import present_model
from fleet_forecast.serving.forecasts.model_trial import ModelTrial
from fleet_forecast.serving.referenced_files import ReferencedFiles, read_referenced_files
from fleet_forecast.serving.settings import Settings, SettingsError


def run_daemon(settings: Settings) -> bool:
    """Serve until SIGTERM or Ctrl-C; whether the daemon could start."""
    files = read_referenced_files(settings, os.environ)
    model = present_model(settings.model, settings.model_is_chosen)
    if not model.exists():
        raise SettingsError(
            f"model: {settings.model} does not exist; train one with tft_trainer.py, or give --model DIR"
        )
    trial = ModelTrial.of(settings)
    trial.begin(model)
    try:
        problem = _serve(settings, files, trial)
    finally:
        trial.close()
    if problem:
        print(f"error: the daemon could not start on {settings.host}:{settings.port}: {problem}", file=sys.stderr)
    return not problem


def _serve(settings: Settings, files: ReferencedFiles, trial: ModelTrial) -> str:
    """Serve until the end; why the daemon could not start, empty if it could."""
    # Imported here, while the model is tried: each of the two takes a good part of the time until the daemon is ready.
    from fleet_forecast.serving.app import create_app
    from fleet_forecast.serving.http.server import serve
    from fleet_forecast.serving.lifespan import model_loading
    from fleet_forecast.serving.monitoring.exposition import check_exposed_names
    from fleet_forecast.serving.monitoring.log import log_as_json

    check_exposed_names(fleet_in_use().metrics)
    log_as_json()
    # The interpreter switches threads at this interval, so that the event loop responds within milliseconds.
    sys.setswitchinterval(0.0001)
    scheme = "http" if settings.tls_certificate is None else "https"
    logging.getLogger(__name__).info(
        "start", extra={"address": f"{scheme}://{_in_address(settings.host)}:{settings.port}"}
    )
    app = create_app(settings, files, model_loading(settings, trial))
    if serve(app, settings, app.state.certificate):
        return ""
    unknown = "the log above has the reason. If the address is in use, stop what listens there or give another --port"
    return getattr(app.state, "start_problem", unknown)


def _in_address(host: str) -> str:
    """A host name as addresses have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host
