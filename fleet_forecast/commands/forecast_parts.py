"""Forecasts of a fleet in parts: tft_inference.py --engine parts, or --engine ray."""

from __future__ import annotations

import argparse
import json
import time

from fleet_forecast.commands.file_input import load_engine
from fleet_forecast.commands.forecast_file import distance_of_origins, first_origin_of
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.scale.forecast_parts import ModelFiles, PartsJob
from fleet_forecast.scale.parts import Folder
from fleet_forecast.scale.peers_of_parts import Reading
from fleet_forecast.scale.run import forecast_fleet, pool_of
from fleet_forecast.serving.settings import Settings
from fleet_forecast.usage import UsageError, note
from server_profiles import ProfileRules

SHOWN_NOTICES = 20


def forecast_parts(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> None:
    """Forecast each file of a folder or an address, write one file for each and a manifest, print it as JSON.

    Raises DataFileError if some parts have no forecasts; the others are written.
    """
    started = time.perf_counter()
    source, output = _folders(arguments)
    every_seconds = distance_of_origins(arguments.origins)
    first_origin = first_origin_of(arguments.first_origin, every_seconds)
    if every_seconds is not None and first_origin is None:
        raise UsageError("--from is missing: the parts of a fleet begin at different times; give the first origin")
    parts = source.parts()
    if interrupted := source.interrupted_note(parts):
        note(interrupted)
    engine = load_engine(settings)
    job = PartsJob(
        ModelFiles.read(engine.model_dir or settings.model),
        Reading(rules, settings.input_timezone),
        output.address,
        every_seconds,
        first_origin,
    )
    threads = settings.threads or None
    with pool_of(arguments.engine, arguments.ray_address, arguments.workers, threads) as pool:
        manifest = forecast_fleet(pool, job, engine, parts)
    notices = [f"{part['part']}: {text}" for part in manifest["parts"] for text in part["notices"]]
    for text in notices[:SHOWN_NOTICES]:
        note(text)
    if len(notices) > SHOWN_NOTICES:
        note(f"{len(notices) - SHOWN_NOTICES:,} more notes are in the manifest")
    failed = manifest["failed"]
    counts = {name: manifest[name] for name in ("model", "rows", "servers", "forecasts")}
    seconds = round(time.perf_counter() - started, 3)
    summary = {"output": output.address, **counts, "parts": len(manifest["parts"]), "failed": len(failed)}
    print(json.dumps({**summary, "seconds": seconds}))
    if failed:
        name, problem = next(iter(failed.items()))
        raise DataFileError(f"{len(failed)} of {len(parts)} parts have no forecasts (manifest.json): {name}: {problem}")


def _folders(arguments: argparse.Namespace) -> tuple[Folder, Folder]:
    for flag in ("input", "output"):
        if getattr(arguments, flag) is None:
            raise UsageError(f"--{flag} is missing; --engine {arguments.engine} needs --input and --output")
    source, output = Folder(str(arguments.input)), Folder(str(arguments.output))
    if output.is_within(source):
        raise UsageError(f"--output {arguments.output}: is in the folder of --input; give another folder")
    return source, output
