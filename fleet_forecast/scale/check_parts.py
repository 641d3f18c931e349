"""The data contract of a fleet in parts: each file is checked by itself, as for a forecast."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fleet_forecast.contract.checks import ContractError
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.contract.reading import check_metrics
from fleet_forecast.contract.specs import CONTRACT_VERSION
from fleet_forecast.iso_time import iso_offset
from fleet_forecast.scale.parts import Folder, Part, fetched
from fleet_forecast.scale.peers_of_parts import Reading
from fleet_forecast.scale.run import Pool, shown


class PartCheck(NamedTuple):
    """The content of a file, or `violations` of the contract; times: the first and the last one."""

    part: str
    violations: tuple[str, ...] = ()
    rows: int = 0
    servers: tuple[str, ...] = ()
    times: tuple[np.datetime64, ...] = ()
    metrics: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def check_part(part: Part, reading: Reading) -> PartCheck:
    """Check one file, in memory that does not grow with its rows."""
    try:
        with fetched(part) as folder:
            data = check_metrics(folder, *reading)
    except ContractError as problem:
        return PartCheck(part.name, tuple(map(str, problem.violations)))
    except DataFileError as problem:
        return PartCheck(part.name, (str(problem),))
    profiles = tuple(sorted(set(data.profiles)))
    times = (data.first, data.last)
    return PartCheck(part.name, (), data.rows, data.servers, times, data.metrics, profiles, data.notices)


def check_fleet(pool: Pool, address: str, reading: Reading) -> dict[str, Any]:
    """Check all files of a folder or an address; the content of data_contract.py's JSON line.

    Raises DataFileError if there are none.
    """
    folder = Folder(address)
    parts = folder.parts()
    interrupted = folder.interrupted_note(parts)
    checked = sorted(shown(pool.map(partial(check_part, reading=reading), parts), len(parts), "check"))
    times = [time for each in checked for time in each.times]
    return {
        "path": address,
        "contract_version": CONTRACT_VERSION,
        "parts": len(parts),
        "rows": sum(each.rows for each in checked),
        "servers": sum(len(each.servers) for each in checked),
        "first": iso_offset(pd.Timestamp(min(times), tz="UTC")) if times else None,
        "last": iso_offset(pd.Timestamp(max(times), tz="UTC")) if times else None,
        "metrics": list(dict.fromkeys(name for each in checked for name in each.metrics)),
        "profiles": sorted({name for each in checked for name in each.profiles}),
        "notices": [
            *([interrupted] if interrupted else []),
            *(f"{each.part}: {text}" for each in checked for text in each.notices),
        ],
        "violations": [
            *({"part": each.part, "problem": text} for each in checked for text in each.violations),
            *_servers_in_two_parts(checked),
        ],
    }


def _servers_in_two_parts(checked: Sequence[PartCheck]) -> list[dict[str, str]]:
    part_of: dict[str, str] = {}
    found = []
    for each in checked:
        for name in each.servers:
            if (other := part_of.setdefault(name, each.part)) != each.part:
                problem = f"server {name} is in {other} too; write all rows of a server into one file"
                found.append({"part": each.part, "problem": problem})
    return found
