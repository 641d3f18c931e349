"""A backup of the daemon's history: tft_inference.py --backup FILE."""

from __future__ import annotations

import argparse
import json

from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.offline.copying import back_up
from server_profiles import ProfileRules


def back_up_history(arguments: argparse.Namespace, settings: Settings, _rules: ProfileRules) -> None:
    """Write the backup, print its path and size as JSON."""
    back_up(settings.history, arguments.backup)
    size = arguments.backup.stat().st_size
    print(json.dumps({"backup": str(arguments.backup), "history": str(settings.history), "bytes": size}))
