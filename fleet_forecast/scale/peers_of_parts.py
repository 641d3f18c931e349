"""The peers of a fleet in parts: one table for all parts, from the servers that the whole fleet's table has.

It takes two passes, neither of which holds the fleet in memory: the names and profiles of all servers, from their two
columns, and then all columns of the few servers per profile that are chosen from them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fleet_forecast.contract.checks import ContractError
from fleet_forecast.contract.files import Rows, find_source, open_rows
from fleet_forecast.contract.labels import is_server_name
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.contract.reading import read_metrics
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.peers import PeerTable, ProfileMembers
from fleet_forecast.inference.batch import grid_for
from fleet_forecast.inference.model_config import ModelConfig
from fleet_forecast.scale.parts import Part, fetched
from server_profiles import ProfileRules, profile_of


class Reading(NamedTuple):
    """How files are read: rules of profiles, and the zone of times that have none."""

    rules: ProfileRules
    input_timezone: str | None


class PartServers(NamedTuple):
    """The servers of a part and their profiles, both [server]; problem: why its names cannot be read."""

    part: Part
    servers: tuple[str, ...] = ()
    profiles: tuple[str | None, ...] = ()
    problem: str | None = None


class Members(NamedTuple):
    """The servers of a part that the table of peers is made from."""

    part: Part
    servers: tuple[str, ...]


@dataclass(frozen=True)
class FleetPeerTable:
    """The table of the whole fleet; members: the servers that it is made from."""

    table: PeerTable
    members: frozenset[str]


def servers_of(part: Part, reading: Reading) -> PartServers:
    """Names and profiles, read from their columns alone."""
    sent: dict[str, str | None] = {}
    try:
        with fetched(part) as folder:
            rows = open_rows(find_source(folder))
            if "server_name" not in rows.columns:
                return PartServers(part, problem="server_name: no such column; see DATA_CONTRACT.md")
            for frame in _frames(rows, ("server_name", "profile")):
                for name, *profile in frame.drop_duplicates().itertuples(index=False):
                    if isinstance(name, str) and is_server_name(name):
                        sent[name] = sent.get(name) or next((each for each in profile if isinstance(each, str)), None)
    except DataFileError as problem:
        return PartServers(part, problem=str(problem))
    servers = tuple(sorted(sent))
    return PartServers(part, servers, tuple(profile_of(name, sent[name], reading.rules)[0] for name in servers))


def choose_members(fleet: Sequence[PartServers]) -> list[Members]:
    """The servers that the table of peers is made from, which are those that the whole fleet's table would have.

    Raises DataFileError if two parts hold rows of one server.
    """
    part_of: dict[str, Part] = {}
    profile_of_server: dict[str, str | None] = {}
    for of_part in fleet:
        for name, profile in zip(of_part.servers, of_part.profiles, strict=True):
            if name in part_of:
                raise DataFileError(
                    f"server {name} is in {part_of[name].name} and in {of_part.part.name}; "
                    "write all rows of a server into one file"
                )
            part_of[name], profile_of_server[name] = of_part.part, profile
    names = sorted(part_of)
    chosen: dict[Part, list[str]] = {}
    for rows in ProfileMembers.of(names, [profile_of_server[name] for name in names]).rows:
        for name in (names[row] for row in rows):
            chosen.setdefault(part_of[name], []).append(name)
    return [Members(part, tuple(sorted(servers))) for part, servers in chosen.items()]


def rows_of_members(members: Members, reading: Reading) -> pd.DataFrame:
    """The contract's rows of the members of a part; none if they break the contract, as the part then does too."""
    wanted = frozenset(members.servers)
    try:
        with fetched(members.part) as folder, tempfile.TemporaryDirectory() as chosen:
            rows = open_rows(find_source(folder))
            frames = [frame[frame["server_name"].isin(wanted)] for frame in _frames(rows, rows.columns)]
            file = Path(chosen) / "members.parquet"
            pd.concat(frames, ignore_index=True).to_parquet(file)
            return read_metrics(file, *reading).frame
    except (ContractError, DataFileError):
        return pd.DataFrame()


def table_of(frames: Iterable[pd.DataFrame], config: ModelConfig, rules: ProfileRules) -> FleetPeerTable | None:
    """The table from the members' rows; None without any."""
    frames = [frame.astype({"server_name": object, "profile": object}) for frame in frames if len(frame)]
    if not frames:
        return None
    grid: FleetGrid = grid_for(pd.concat(frames, ignore_index=True), config, rules)
    return FleetPeerTable(grid.peers().table, frozenset(grid.servers))


def _frames(rows: Rows, columns: Sequence[str]) -> Iterable[pd.DataFrame]:
    return rows.batches(tuple(name for name in columns if name in rows.columns))
