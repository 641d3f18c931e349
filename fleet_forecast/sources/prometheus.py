"""Prometheus as a source: a fleet's metrics by range queries, as rows of the data contract.

A row's timestamp is the begin of the step its values are means over: the value that a query gives at time T with the
window `$window` of one step speaks of the step before T. Counter resets are rate()'s business; where Prometheus has no
value (a gap, NaN, Inf) nothing was measured.
"""

from __future__ import annotations

import math
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np
import orjson
import pandas as pd

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.sources.address import is_address

STEPS_PER_QUERY = 1_000  # Prometheus refuses more than 11,000 points a series; fewer bound the memory of an answer
ATTEMPTS = 4
WINDOW = "$window"
MIN_WINDOW_SECONDS = 60  # rate() needs two samples within the window; scrapes are 15 s to 1 min apart

Progress = Callable[[int, int], None]  # queries done, queries in all


class PrometheusError(RuntimeError):
    """Prometheus cannot be reached or refused a query; the message names the address or query and the reason."""


class QueryFileError(ValueError):
    """A query file is wrong; the message names the file, the key and the remedy."""


@dataclass(frozen=True)
class QuerySet:
    """One PromQL expression per metric of the contract; `$window` stands for the step as a duration.

    server_label: the label that names the server; strip_port: whether host:9100 is the server "host".
    """

    queries: Mapping[str, str]
    server_label: str = "instance"
    strip_port: bool = True


_DISKS = 'device!~"loop.*|ram.*|sr.*|dm-.*|md.*|zram.*"'  # dm and md repeat the traffic of the disks below them
_LINKS = 'device!~"lo|veth.*|docker.*|br-.*|virbr.*|cali.*|flannel.*|cni.*|tun.*|tap.*|bond.*"'
NODE_EXPORTER = QuerySet(
    MappingProxyType(
        {
            "cpu_pct": (
                'clamp(100 * (1 - avg by (instance) (rate(node_cpu_seconds_total{mode="idle"}[$window]))), 0, 100)'
            ),
            "mem_pct": (
                "clamp(100 * (1 - avg by (instance) (avg_over_time(node_memory_MemAvailable_bytes[$window]))"
                " / avg by (instance) (avg_over_time(node_memory_MemTotal_bytes[$window]))), 0, 100)"
            ),
            "disk_io_mb_s": (
                f"sum by (instance) (rate(node_disk_read_bytes_total{{{_DISKS}}}[$window])"
                f" + rate(node_disk_written_bytes_total{{{_DISKS}}}[$window])) / 1e6"
            ),
            "net_in_mb_s": f"sum by (instance) (rate(node_network_receive_bytes_total{{{_LINKS}}}[$window])) / 1e6",
            "net_out_mb_s": f"sum by (instance) (rate(node_network_transmit_bytes_total{{{_LINKS}}}[$window])) / 1e6",
            # Mean time of a disk's read or write, not measured while there is none; an application's own latency is
            # the better choice where there is one: give it in a query file.
            "latency_ms": (
                f"1000 * sum by (instance) (rate(node_disk_read_time_seconds_total{{{_DISKS}}}[$window])"
                f" + rate(node_disk_write_time_seconds_total{{{_DISKS}}}[$window]))"
                f" / sum by (instance) (rate(node_disk_reads_completed_total{{{_DISKS}}}[$window])"
                f" + rate(node_disk_writes_completed_total{{{_DISKS}}}[$window]))"
            ),
        }
    )
)


def load_query_set(path: Path) -> QuerySet:
    """Queries of a TOML file: [queries] metric = 'PromQL', and server_label, strip_port if they are not the usual ones.

    Raises QueryFileError.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise QueryFileError(f"query file {path}: {problem.strerror}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise QueryFileError(f"query file {path} is not TOML: {problem}") from None
    for key, kind in (("queries", dict), ("server_label", str), ("strip_port", bool)):
        if key in document and not isinstance(document[key], kind):
            raise QueryFileError(f"query file {path}: {key} is {document[key]!r}; it is a {kind.__name__}")
    unknown = sorted(document.keys() - {"queries", "server_label", "strip_port"})
    if unknown:
        raise QueryFileError(f"query file {path}: unknown key {unknown[0]!r}; use queries, server_label, strip_port")
    queries = document.get("queries", {})
    if not queries:
        raise QueryFileError(
            f"query file {path}: no queries; write [queries] and a line per metric, as cpu_pct = '...'"
        )
    for metric, query in queries.items():
        if metric not in METRICS:
            raise QueryFileError(f"query file {path}: unknown metric {metric!r}; use {', '.join(METRICS)}")
        if not isinstance(query, str) or not query.strip():
            raise QueryFileError(f"query file {path}: {metric} is {query!r}; it is a PromQL expression in quotes")
    return QuerySet(
        MappingProxyType(dict(queries)), document.get("server_label", "instance"), document.get("strip_port", True)
    )


@dataclass(frozen=True)
class Series:
    """One series of a range query; values are NaN where Prometheus says NaN or Inf."""

    labels: Mapping[str, str]
    seconds: np.ndarray  # float64 [point], UTC since 1970
    values: np.ndarray  # float64 [point]


@dataclass
class PrometheusClient:
    """Range queries to one Prometheus; transient failures are tried again with growing pauses.

    token: sent as bearer token. transport: another way to the server, for tests.
    """

    base_url: str
    token: str | None = None
    timeout_seconds: float = 60.0
    transport: httpx.BaseTransport | None = None
    pause_seconds: float = 0.5
    _client: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not is_address(self.base_url):
            raise PrometheusError(f"{self.base_url!r} is no address; write http://host:9090")
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        self._client = httpx.Client(headers=headers, timeout=self.timeout_seconds, transport=self.transport)

    def query_range(self, query: str, start_seconds: int, end_seconds: int, step_seconds: int) -> list[Series]:
        """The series of a query at start, start + step, ... up to the end. Raises PrometheusError."""
        form = {"query": query, "start": start_seconds, "end": end_seconds, "step": step_seconds}
        answer = self._post("/api/v1/query_range", {key: str(value) for key, value in form.items()})
        try:
            return [_series(entry) for entry in answer["data"]["result"]]
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise PrometheusError(f"{self.base_url}: not an answer of Prometheus ({problem!r})") from None

    def __enter__(self) -> PrometheusClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _post(self, path: str, form: dict[str, str]) -> dict[str, Any]:
        url = self.base_url.rstrip("/") + path
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = self._client.post(url, data=form)
            except (httpx.HTTPError, OSError) as problem:  # a broken encoding of the answer among others
                reason = f"{type(problem).__name__}: {problem}"
            else:
                if response.status_code == 200:
                    return _document(response, url)
                reason = f"status {response.status_code}: {_reason(response)}"
                if response.status_code < 500 and response.status_code != 429:
                    raise PrometheusError(f"{url} refused {form['query'][:300]!r}: {reason}")
            if attempt < ATTEMPTS:
                time.sleep(self.pause_seconds * 2 ** (attempt - 1))
        raise PrometheusError(f"{url} does not answer after {ATTEMPTS} attempts: {reason}")


def pull_range(
    client: PrometheusClient,
    queries: QuerySet,
    start: datetime,
    end: datetime,
    step_seconds: int,
    progress: Progress = lambda _done, _total: None,
) -> pd.DataFrame:
    """Rows of the contract (timestamp, server_name, the queried metrics) for the steps in [start, end).

    Steps are multiples of `step_seconds` since 1970; start and end are rounded down to them. A server has no row in a
    step where none of its metrics was measured. Raises PrometheusError; ValueError if the range holds no step.
    """
    first = int(start.timestamp()) // step_seconds
    last = int(end.timestamp()) // step_seconds - 1
    if last < first:
        raise ValueError(f"no whole step of {step_seconds} s between {start} and {end}; choose a longer range")
    metrics = [metric for metric in METRICS if metric in queries.queries]
    chunks = list(_chunks(first, last))
    tables: dict[str, np.ndarray] = {}  # server -> float32 [step, metric]
    window = f"{max(step_seconds, MIN_WINDOW_SECONDS)}s"
    for done, (metric, (begin, finish)) in enumerate(((m, c) for m in metrics for c in chunks), 1):
        query = queries.queries[metric].replace(WINDOW, window)
        found = client.query_range(query, (begin + 1) * step_seconds, (finish + 1) * step_seconds, step_seconds)
        seen: set[str] = set()
        for series in found:
            name = _server_name(series.labels, queries, metric)
            if name in seen:
                raise PrometheusError(f"query of {metric}: two series for server {name!r}; aggregate them in the query")
            seen.add(name)
            table = tables.setdefault(name, np.full((last - first + 1, len(metrics)), np.nan, dtype=np.float32))
            steps = np.round(series.seconds / step_seconds).astype(np.int64) - 1 - first
            if ((steps < 0) | (steps >= len(table))).any():
                raise PrometheusError(f"query of {metric}: values of server {name!r} outside the range asked for")
            table[steps, metrics.index(metric)] = series.values
        progress(done, len(metrics) * len(chunks))
    return _frame(tables, metrics, first, step_seconds)


def _chunks(first: int, last: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + STEPS_PER_QUERY - 1, last)) for begin in range(first, last + 1, STEPS_PER_QUERY))


def _frame(tables: Mapping[str, np.ndarray], metrics: list[str], first: int, step_seconds: int) -> pd.DataFrame:
    names = sorted(tables)
    values = np.stack([tables[name] for name in names]) if names else np.empty((0, 0, len(metrics)), np.float32)
    server, step = np.nonzero(~np.isnan(values).all(axis=2))
    seconds = (first + step) * step_seconds
    return pd.DataFrame(
        {
            "timestamp": pd.to_datetime(seconds, unit="s", utc=True).as_unit("ns"),
            "server_name": np.array(names, dtype=object)[server] if names else np.array([], dtype=object),
            **{metric: values[server, step, index] for index, metric in enumerate(metrics)},
        }
    )


def _server_name(labels: Mapping[str, str], queries: QuerySet, metric: str) -> str:
    name = labels.get(queries.server_label)
    if not name:
        raise PrometheusError(
            f"query of {metric}: a series without the label {queries.server_label!r} ({dict(labels)}); "
            f"keep it in the query (sum by ({queries.server_label})), or set server_label"
        )
    return re.sub(r":\d+$", "", name) if queries.strip_port else name


def _series(entry: Mapping[str, Any]) -> Series:
    points = entry["values"]
    values = np.array([float(value) for _, value in points], dtype=np.float64)
    values[~np.isfinite(values)] = math.nan
    labels = {name: str(value) for name, value in entry["metric"].items()}
    return Series(labels, np.array([float(second) for second, _ in points]), values)


def _document(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        raise PrometheusError(f"{url}: the answer is not JSON; is this a Prometheus?") from None
    return document if isinstance(document, dict) else {}


def _reason(response: httpx.Response) -> str:
    try:
        return str(orjson.loads(response.content)["error"])[:500]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return response.text[:200]
