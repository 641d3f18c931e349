"""Runs each query of each Prometheus once, over the last hour: the results, and what would be left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.sources.fleet_pull import LeftOut, Owners, taken_elsewhere
from fleet_forecast.sources.prometheus import PrometheusError, PrometheusServer, series_by_server
from fleet_forecast.wording import counted
from server_profiles import ProfileRules, profile_of

PROBED_SECONDS = 3_600
SHOWN_NAMES = 20  # of one line of the text; the document has all


class ProbedQuery(NamedTuple):
    """The result of one query; problem: why it failed."""

    prometheus: str
    metric: str
    series: int
    servers: frozenset[str]
    problem: str | None = None


@dataclass(frozen=True)
class Probe:
    """The results of all queries. owners: server -> Prometheus. profiles: server -> profile, rule (None: no match)."""

    addresses: Mapping[str, str]
    queries: Sequence[ProbedQuery]
    left_out: Sequence[LeftOut]
    owners: Mapping[str, str]
    profiles: Mapping[str, tuple[str, str | None]]
    step_seconds: int

    @property
    def failed(self) -> bool:
        """Whether a query failed, or all queries of a Prometheus returned no series."""
        return any(query.problem is not None for query in self.queries) or bool(self.silent)

    @property
    def silent(self) -> list[str]:
        """The Prometheus servers for which no query returned a series."""
        return [name for name in self.addresses if not any(q.series for q in self.queries if q.prometheus == name)]

    def missing(self) -> dict[str, list[str]]:
        """Metric -> servers that are taken and lack it."""
        have = {
            metric: {(q.prometheus, s) for q in self.queries if q.metric == metric for s in q.servers}
            for metric in METRICS
        }
        lacking = {
            metric: sorted(server for server, owner in self.owners.items() if (owner, server) not in have[metric])
            for metric in METRICS
        }
        return {metric: servers for metric, servers in lacking.items() if servers}


def probe(servers: Sequence[PrometheusServer], rules: ProfileRules, now_seconds: float, step_seconds: int) -> Probe:
    """Ask every Prometheus for the last hour of each metric; a query that fails does not stop the others."""
    last = int(now_seconds) // step_seconds * step_seconds
    first = last - max(step_seconds, PROBED_SECONDS // step_seconds * step_seconds) + step_seconds
    queries: list[ProbedQuery] = []
    left_out: list[LeftOut] = []
    owners = Owners([server.name for server in servers])
    for server in servers:
        refused: dict[str, str] = {}
        asked = [_ask(server, metric, (first, last, step_seconds), refused) for metric in server.queries.queries]
        left_out += [LeftOut(server.name, name, reason) for name, reason in refused.items()]
        found = frozenset().union(*(query.servers for query in asked)) - refused.keys()
        left_out += [LeftOut(server.name, n, taken_elsewhere(o)) for n, o in owners.claim(server.name, found).items()]
        queries += [query._replace(servers=query.servers - refused.keys()) for query in asked]
    taken = {name for query in queries for name in query.servers}
    owned = {name: str(owners.of_server(name)) for name in sorted(taken)}
    addresses = {server.name: server.client.address for server in servers}
    profiles = {name: profile_of(name, None, rules) for name in owned}
    return Probe(addresses, queries, left_out, owned, profiles, step_seconds)


def _ask(server: PrometheusServer, metric: str, times: tuple[int, int, int], refused: dict[str, str]) -> ProbedQuery:
    first, last, step_seconds = times
    try:
        found = server.client.query_range(server.query(metric, step_seconds), first, last, step_seconds)
        by_server = series_by_server(found, server.queries, metric, refused)
    except PrometheusError as problem:
        return ProbedQuery(server.name, metric, 0, frozenset(), str(problem))
    return ProbedQuery(server.name, metric, len(found), frozenset(by_server))


def probe_text(found: Probe) -> str:
    """For people: a line for each query, then servers, profiles, missing metrics and what is left out, by name."""
    return "\n".join(_lines(found))


def _lines(found: Probe) -> Iterator[str]:
    for name, address in found.addresses.items():
        taken = sum(owner == name for owner in found.owners.values())
        yield f"prometheus {name} ({address}): {counted(taken, 'server')} {'is' if taken == 1 else 'are'} taken from it"
        for query in found.queries:
            if query.prometheus == name:
                count = f"{query.series} series, {counted(len(query.servers), 'server')}"
                yield f"  {query.metric}: {count if query.problem is None else f'failed: {query.problem}'}"
        if name in found.silent:
            yield (
                f"  no query gives a series of the last {PROBED_SECONDS // 60} minutes; a series needs a whole step "
                f"({found.step_seconds} s): wait, if the exporters have been scraped for less; else check that this "
                "Prometheus has the exporters' series, and correct the queries"
            )
    for profile in sorted({profile for profile, _ in found.profiles.values()}):
        yield f"profile {profile}: {_names(n for n, (own, _) in found.profiles.items() if own == profile)}"
    if unmatched := [name for name, (_, rule) in found.profiles.items() if rule is None]:
        yield f"no profile rule matches: {_names(unmatched)}"
    for metric, servers in found.missing().items():
        yield f"no {metric}: {_names(servers)}"
    yield from (each.sentence for each in found.left_out)


def _names(names: Iterable[str]) -> str:
    every = sorted(names)
    more = f" and {len(every) - SHOWN_NAMES} more" if len(every) > SHOWN_NAMES else ""
    return f"{len(every)}: {', '.join(every[:SHOWN_NAMES])}{more}"


def probe_document(found: Probe) -> dict[str, Any]:
    """For JSON, with all names."""
    return {
        "queries": [{**query._asdict(), "servers": len(query.servers)} for query in found.queries],
        "servers": {
            name: {"prometheus": owner, "profile": found.profiles[name][0], "profile_rule": found.profiles[name][1]}
            for name, owner in found.owners.items()
        },
        "missing": found.missing(),
        "left_out": [each._asdict() for each in found.left_out],
    }
