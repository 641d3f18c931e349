"""Servers of a file whose behaviour contradicts their profile: tft_inference.py --input PATH --audit."""

from __future__ import annotations

import argparse
import json

from fleet_forecast.contract.reading import read_metrics
from fleet_forecast.features.grid import FleetGrid, infer_step_seconds
from fleet_forecast.profile_audit.audit import (
    AuditedFleet,
    audit_document,
    audit_profiles,
    audit_text,
    steps_of_day,
)
from fleet_forecast.serving.settings import Settings
from fleet_forecast.usage import UsageError, note
from server_profiles import ProfileRules, profile_of


def audit_file(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> None:
    """Print the servers and profiles of the profile audit, the lines that accept it, and the audit as JSON."""
    if arguments.input is None:
        raise UsageError("--input is missing; --audit needs the metrics of a fleet")
    data = read_metrics(arguments.input, rules, settings.input_timezone)
    for notice in data.notices:
        note(notice)
    step_seconds = data.metadata.step_seconds if data.metadata else infer_step_seconds(data.frame)
    grid = FleetGrid.from_frame(data.frame, data.metrics, step_seconds)
    sent = grid.profiles if data.has_profile_column else (None,) * len(grid.servers)
    matches = [profile_of(name, profile, rules) for name, profile in zip(grid.servers, sent, strict=True)]
    audit = audit_profiles(
        AuditedFleet(
            grid.servers,
            [profile for profile, _ in matches],
            [rule is not None for _, rule in matches],
            grid.metrics,
            grid.values[:, -steps_of_day(step_seconds) :],
        )
    )
    print(audit_text(audit))
    print(json.dumps(audit_document(audit)))
