"""Prometheus as a source: metrics of a fleet by range queries, as rows of the data contract.

A row's timestamp is the start of its step. The value of a query at time T with the window `$window` of one step
describes the step that ends at T. `rate()` handles counter resets. Where Prometheus has no value (a gap, NaN, Inf), the
metric is not measured.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import httpx
import numpy as np
import orjson
import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator
from tenacity import Retrying

from fleet_forecast.contract.definitions import FleetDefinition
from fleet_forecast.contract.labels import is_server_name
from fleet_forecast.contract.specs import METRICS, SERVER_NAME_WORDS
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.retry import TransientError, back_off
from fleet_forecast.sources.address import without_port
from fleet_forecast.sources.bounded_http import BoundedClient, ResponseLimits, ResponseTooLargeError
from fleet_forecast.sources.connection import Access
from fleet_forecast.sources.devices import OTHER_DISKS, OTHER_LINKS
from fleet_forecast.sources.label_matchers import with_matchers

STEPS_PER_QUERY = 1_000  # Prometheus refuses more than 11,000 points a series; fewer limit the size of a response
MAX_RESPONSE_BYTES = 64 * 1024 * 1024  # parsing takes about 15 times as much memory
ATTEMPTS = 4
LONGEST_PAUSE_SECONDS = 30.0
WINDOW = "$window"
MIN_WINDOW_SECONDS = 60  # of `$window`: rate() needs two samples within the window; scrapes are 15 s to 1 min apart

_TOO_LARGE = re.compile(r"(?i)too many (samples|points|chunks)|maximum (resolution|number of)|limit|too (large|long)")
TWO_SERIES = "has two series; aggregate them in the query, or set strip_port = false to keep the ports apart"

Progress = Callable[[int, int], None]  # queries done, queries in all


class PrometheusError(RuntimeError):
    """Prometheus cannot be reached or refused a query; the message names the address or query and the reason."""


class PrometheusResponseTooLargeError(PrometheusError):
    """The response to one query is larger than MAX_RESPONSE_BYTES."""


def known_metric(name: str) -> str:
    """A name of a metric of the fleet in use. Raises ValueError with the known ones."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; use {', '.join(METRICS)}")
    return name


_Metric = Annotated[str, AfterValidator(known_metric)]
_Query = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class QuerySet(BaseModel):
    """One PromQL expression per metric; `$window` is replaced by the step as a duration.

    A metric without a query is not pulled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    queries: Mapping[_Metric, _Query] = Field(default={}, validate_default=True)
    server_label: str = Field(default="instance", description="label with the name of the server")
    strip_port: bool = Field(default=True, description="whether host:9100 is the server host")

    @field_validator("queries")
    @classmethod
    def _at_least_one(cls, queries: Mapping[str, str]) -> Mapping[str, str]:
        if not queries:
            raise ValueError("no queries; give one per metric, as cpu_pct = '...'")
        return MappingProxyType(dict(queries))


_DISKS = f'device!~"{OTHER_DISKS}"'
_LINKS = f'device!~"{OTHER_LINKS}"'
NODE_EXPORTER = QuerySet(
    queries={
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
        # the better choice where there is one: give it in the fleet file.
        "latency_ms": (
            f"1000 * sum by (instance) (rate(node_disk_read_time_seconds_total{{{_DISKS}}}[$window])"
            f" + rate(node_disk_write_time_seconds_total{{{_DISKS}}}[$window]))"
            f" / sum by (instance) (rate(node_disk_reads_completed_total{{{_DISKS}}}[$window])"
            f" + rate(node_disk_writes_completed_total{{{_DISKS}}}[$window]))"
        ),
    }
)


def query_set_of(fleet: FleetDefinition) -> QuerySet:
    """The queries of a fleet file, and the default ones of the other metrics if they have the same server label.

    An empty query: the metric is not pulled. Raises TomlFileError if no query is left.
    """
    given = {**(NODE_EXPORTER.queries if fleet.server_label == NODE_EXPORTER.server_label else {}), **fleet.queries}
    queries = {metric: query for metric, query in given.items() if query}
    if not queries:
        raise TomlFileError(
            f"fleet file {fleet.source}: no metric has a query; write [metrics.cpu_pct] query = '...', or omit "
            f"server_label = {fleet.server_label!r}: the built-in queries have {NODE_EXPORTER.server_label!r}"
        )
    return QuerySet(queries=queries, server_label=fleet.server_label, strip_port=fleet.strip_port)


@dataclass(frozen=True)
class Series:
    """One series of a range query; values are NaN where Prometheus has NaN or Inf."""

    labels: Mapping[str, str]
    seconds: np.ndarray  # float64 [point], UTC since 1970
    values: np.ndarray  # float64 [point]


@dataclass
class PrometheusClient:
    """Range queries to one Prometheus, with retries and back-off, and a connection for each.

    timeout_seconds: for one complete response. transport: replaces the network in tests.
    """

    access: Access
    timeout_seconds: float = 120.0
    transport: httpx.AsyncBaseTransport | None = None
    pause_seconds: float = 0.5
    _certificates: ssl.SSLContext = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._certificates = self.access.certificates or httpx.create_ssl_context()

    @property
    def address(self) -> str:
        """The address as messages show it."""
        return self.access.address

    def query_range(self, query: str, start_seconds: int, end_seconds: int, step_seconds: int) -> list[Series]:
        """The series of a query at start, start + step, ... up to the end.

        Raises PrometheusResponseTooLargeError if fewer steps may help, else PrometheusError.
        """
        form = {"query": query, "start": start_seconds, "end": end_seconds, "step": step_seconds}
        document = self._post("/api/v1/query_range", {key: str(value) for key, value in form.items()})
        try:
            return [_series(entry) for entry in document["data"]["result"]]
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise PrometheusError(
                f"{self.address}: not a response of Prometheus ({problem!r}); correct the address"
            ) from None

    def _post(self, path: str, form: dict[str, str]) -> dict[str, Any]:
        shown = self.address + path
        policy = back_off(TransientError, LONGEST_PAUSE_SECONDS, ATTEMPTS, self.pause_seconds)
        try:
            response = Retrying(**policy)(self._post_once, path, form)
        except TransientError as problem:
            raise PrometheusError(
                f"{shown} does not respond after {ATTEMPTS} attempts: {problem}; "
                "check the address and that Prometheus runs"
            ) from None
        return _document(response, shown)

    def _post_once(self, path: str, form: dict[str, str]) -> httpx.Response:
        """The response with status 200. Raises TransientError, or PrometheusError if a retry cannot help."""
        shown = self.address + path
        try:
            response = asyncio.run(self._send(path, form))
        except ResponseTooLargeError as problem:
            reason = f"{problem}; ask for fewer servers or labels in the query"
            raise PrometheusResponseTooLargeError(f"{shown}, query {form['query'][:300]!r}: {reason}") from None
        except (httpx.HTTPError, OSError) as problem:
            raise TransientError(f"{type(problem).__name__}: {problem}") from None
        if response.status_code == httpx.codes.OK:
            return response
        reason = f"status {response.status_code}: {_reason(response)}"
        if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY) and _TOO_LARGE.search(
            reason
        ):
            raise PrometheusResponseTooLargeError(f"{shown}, query {form['query'][:300]!r}: {reason}; raise its limits")
        if response.status_code < 500 and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
                raise PrometheusError(
                    f"{shown} refused the credentials: {reason}; correct user and password, or the token"
                )
            raise PrometheusError(
                f"{shown} refused {form['query'][:300]!r}: {reason}; correct the query or the address"
            )
        raise TransientError(reason)

    async def _send(self, path: str, form: dict[str, str]) -> httpx.Response:
        limits = ResponseLimits(MAX_RESPONSE_BYTES, self.timeout_seconds)
        client = BoundedClient(limits, self.access.headers, self.transport, self._certificates)
        try:
            return await client.post(self.access.url.rstrip("/") + path, data=form)
        finally:
            await client.close()


@dataclass(frozen=True)
class PrometheusServer:
    """One Prometheus to pull from.

    matchers: added to each selector of the queries, "" for none. shortest_window_seconds: of `$window`.
    """

    name: str
    client: PrometheusClient
    queries: QuerySet
    matchers: str = ""
    shortest_window_seconds: int = MIN_WINDOW_SECONDS

    def query(self, metric: str, step_seconds: int) -> str:
        """The PromQL of a metric for steps of this length. Raises LabelMatcherError."""
        window = f"{max(step_seconds, self.shortest_window_seconds)}s"
        query = self.queries.queries[metric].replace(WINDOW, window)
        return with_matchers(query, self.matchers) if self.matchers else query


class TimeRange(NamedTuple):
    """A range of time [start, end); both with a zone."""

    start: datetime
    end: datetime


class Pulled(NamedTuple):
    """Rows of the contract, and the servers that were left out with the reason."""

    frame: pd.DataFrame
    left_out: Mapping[str, str]


def pull_range(
    server: PrometheusServer,
    time_range: TimeRange,
    step_seconds: int,
    progress: Progress = lambda _done, _total: None,
) -> Pulled:
    """Rows of the contract (timestamp, server_name, the queried metrics) for the steps in the range.

    Steps are multiples of `step_seconds` since 1970; the range's ends are rounded down to them. A step in which none of
    a server's metrics is measured has no row. A server is left out if its name is not valid, or if a query
    has two series for it. Raises PrometheusError; ValueError if the range holds no step.
    """
    (start, end), queries = time_range, server.queries
    first = int(start.timestamp()) // step_seconds
    last = int(end.timestamp()) // step_seconds - 1
    if last < first:
        raise ValueError(f"no whole step of {step_seconds} s between {start} and {end}; choose a longer range")
    metrics = [metric for metric in METRICS if metric in queries.queries]
    chunks = list(_chunks(first, last))
    tables: dict[str, np.ndarray] = {}  # server -> float32 [step, metric]
    left_out: dict[str, str] = {}
    for done, (metric, (begin, finish)) in enumerate(((m, c) for m in metrics for c in chunks), 1):
        query = server.query(metric, step_seconds)
        for found in _responses(server.client, query, (begin, finish), step_seconds):
            for name, series in series_by_server(found, queries, metric, left_out).items():
                table = tables.setdefault(name, np.full((last - first + 1, len(metrics)), np.nan, dtype=np.float32))
                steps = np.round(series.seconds / step_seconds).astype(np.int64) - 1 - first
                if ((steps < 0) | (steps >= len(table))).any():
                    raise PrometheusError(
                        f"query of {metric}: values of server {name!r} outside the requested range; correct the address"
                    )
                table[steps, metrics.index(metric)] = series.values
        progress(done, len(metrics) * len(chunks))
    for name in left_out:
        tables.pop(name, None)
    return Pulled(_frame(tables, metrics, first, step_seconds), left_out)


def _responses(
    client: PrometheusClient, query: str, steps: tuple[int, int], step_seconds: int
) -> Iterator[list[Series]]:
    """The responses for the steps from the first to the last; a range whose response is too large is halved."""
    first, last = steps
    try:
        yield client.query_range(query, (first + 1) * step_seconds, (last + 1) * step_seconds, step_seconds)
    except PrometheusResponseTooLargeError:
        if first == last:
            raise
        middle = (first + last) // 2
        yield from _responses(client, query, (first, middle), step_seconds)
        yield from _responses(client, query, (middle + 1, last), step_seconds)


def series_by_server(
    found: list[Series], queries: QuerySet, metric: str, left_out: dict[str, str]
) -> dict[str, Series]:
    """The series of each server; adds servers that cannot be used to `left_out`.

    Raises PrometheusError for a series without the label of the server.
    """
    by_server: dict[str, Series] = {}
    for series in found:
        name = _server_name(series.labels, queries, metric)
        if not is_server_name(name):
            left_out[name] = f"a name is {SERVER_NAME_WORDS}"
        elif name in by_server:
            label = queries.server_label
            both = " and ".join(repr(each.labels[label]) for each in (by_server[name], series))
            left_out.setdefault(name, f"query of {metric}: {name!r} ({both}) {TWO_SERIES}")
        else:
            by_server[name] = series
    return by_server


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
    return without_port(name) if queries.strip_port else name


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
        raise PrometheusError(f"{url}: the response is not JSON; is this a Prometheus?") from None
    return document if isinstance(document, dict) else {}


def _reason(response: httpx.Response) -> str:
    try:
        return str(orjson.loads(response.content)["error"])[:500]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return response.text[:200].strip()
