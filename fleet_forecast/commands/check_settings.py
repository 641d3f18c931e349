"""The check of the daemon's settings: tft_inference.py --check-config."""

from __future__ import annotations

import json
import os

from fleet_forecast.commands.pull_fleet import probe_queries
from fleet_forecast.serving.lifespan import DEFAULT_STEP_SECONDS
from fleet_forecast.serving.referenced_files import read_referenced_files
from fleet_forecast.serving.settings import Settings
from fleet_forecast.sources.probe import probe_document
from server_profiles import ProfileRules


def check_settings(settings: Settings, rules: ProfileRules, ask_prometheus: bool) -> bool:
    """Read the files that the settings name and print the settings as JSON; whether all queries succeeded.

    ask_prometheus: run each query once; what they give goes to stderr as text, and as the last line to stdout as JSON.
    """
    files = read_referenced_files(settings, os.environ)
    print(settings.model_dump_json(indent=2))
    if not ask_prometheus:
        return True
    found = probe_queries(files.prometheus, rules, DEFAULT_STEP_SECONDS)
    print(json.dumps(probe_document(found)))
    return not found.failed
