"""The audit of a fleet: compares the profiles that the names give with the behaviour of the servers in one day."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fleet_forecast.contract.definitions import METRIC_SPECS, PROFILES
from fleet_forecast.profile_audit.behaviour import SECONDS_OF_DAY, behaviour, softness_of
from fleet_forecast.profile_audit.probabilities import NO_PROFILE, compare, profile_probabilities
from fleet_forecast.profile_audit.two_in_one import two_in_one
from server_profiles import ServerProfile

SURE = 0.8  # smallest probability of a profile that is suggested
Verdict = Literal["agrees", "contradicts", "unmatched", "unclear", "too_short"]


class AuditError(ValueError):
    """The fleet cannot be audited; the message names the reason and the remedy."""


@dataclass(frozen=True)
class AuditedServer:
    """One server.

    matched: whether a rule gave the profile; without one it is the fallback. verdict: `agrees` with its profile,
    `contradicts` it and behaves like `suggested`, `unmatched` by any rule and behaves like `suggested`, `unclear`, or
    `too_short` a history. probability: of `suggested`, else of its profile; None if the history is too short.
    """

    server_name: str
    profile: str
    matched: bool
    verdict: Verdict
    suggested: str | None
    probability: float | None


@dataclass(frozen=True)
class TwoInOne:
    """A profile whose servers form two groups. apart: as a multiple of what servers of one kind would show."""

    profile: str
    first_group: tuple[str, ...]
    second_group: tuple[str, ...]
    apart: float


@dataclass(frozen=True)
class ProfileAudit:
    """Result of the audit; servers in the order given."""

    servers: tuple[AuditedServer, ...]
    two_in_one: tuple[TwoInOne, ...]

    @property
    def suggestions(self) -> list[AuditedServer]:
        """The servers for which another profile is suggested."""
        return [server for server in self.servers if server.suggested is not None]

    def toml_lines(self) -> list[str]:
        """Lines of the fleet file that accept the suggestions."""
        pins = [f"{json.dumps(each.server_name)} = {json.dumps(each.suggested)}" for each in self.suggestions]
        added = sorted({str(each.suggested) for each in self.suggestions} - set(PROFILES))
        return [*(f"[profiles.{json.dumps(name)}]" for name in added), "[servers]", *pins] if pins else []


@dataclass(frozen=True)
class AuditedFleet:
    """What is audited.

    profiles: by server. matched: bool by server, whether a rule gave the profile. day: float32 [server, step, metric],
    the same day for all servers, NaN = not measured.
    """

    names: Sequence[str]
    profiles: Sequence[str]
    matched: Sequence[bool]
    metrics: Sequence[str]
    day: np.ndarray


def steps_of_day(step_seconds: int) -> int:
    """Number of steps of the day that an audit reads."""
    return max(1, SECONDS_OF_DAY // step_seconds)


def audit_profiles(fleet: AuditedFleet) -> ProfileAudit:
    """Compare each server's behaviour with that of the other servers of every profile.

    Raises AuditError if no two servers of one profile were measured.
    """
    kinds = [METRIC_SPECS[metric].kind for metric in fleet.metrics]
    behaviours = behaviour(fleet.day, kinds, softness_of(fleet.day, kinds))
    behaviours = behaviours[:, ~np.isnan(behaviours).all(axis=0)]
    known = sorted(set(fleet.profiles))
    numbers = np.array([known.index(profile) for profile in fleet.profiles])
    measured = ~np.isnan(behaviours).all(axis=1)
    labels = np.where(measured, numbers, NO_PROFILE)
    if np.bincount(labels[measured], minlength=1).max(initial=0) < 2:
        raise AuditError(
            "no profile has two servers with a quarter of a day of measurements; there is nothing to compare with: "
            "audit a larger fleet or wait for more samples"
        )
    found = profile_probabilities(behaviours, labels, np.array(fleet.matched), len(known))
    servers = []
    for row, (name, profile, matched) in enumerate(zip(fleet.names, fleet.profiles, fleet.matched, strict=True)):
        of_server = dict(zip(known, zip(found.probabilities[row], found.plausible[row], strict=True), strict=True))
        servers.append(_verdict(name, profile, matched, of_server))
    return ProfileAudit(tuple(servers), _two_in_one(fleet.names, known, behaviours, _agreeing(labels, servers)))


def _agreeing(labels: np.ndarray, servers: Sequence[AuditedServer]) -> np.ndarray:
    """The labels without those of servers for which another profile is suggested."""
    return np.where([server.suggested is None for server in servers], labels, NO_PROFILE)


def _two_in_one(
    names: Sequence[str], known: Sequence[str], behaviours: np.ndarray, labels: np.ndarray
) -> tuple[TwoInOne, ...]:
    space, _ = compare(behaviours, labels, len(known))
    found = []
    for group in two_in_one(behaviours, labels, space):
        first, second = (tuple(names[row] for row in group.members[part]) for part in (~group.second, group.second))
        found.append(TwoInOne(known[group.profile], first, second, group.apart))
    return tuple(found)


def _verdict(name: str, profile: str, matched: bool, of_server: dict[str, tuple[float, bool]]) -> AuditedServer:
    """of_server: probability of each profile, and whether the behaviour is plausible for it."""
    best = max(of_server, key=lambda each: np.nan_to_num(of_server[each][0], nan=-1.0))
    probability, plausible = of_server[best]
    own = of_server[profile][0]
    if np.isnan(own):
        return AuditedServer(name, profile, matched, "too_short", None, None)
    if best == profile:
        return AuditedServer(name, profile, matched, "agrees", None, float(own))
    if probability >= SURE and plausible and best != ServerProfile.GENERIC:  # its servers have nothing in common
        verdict: Verdict = "contradicts" if matched else "unmatched"
        return AuditedServer(name, profile, matched, verdict, best, float(probability))
    return AuditedServer(name, profile, matched, "unclear", None, float(own))


def audit_text(audit: ProfileAudit) -> str:
    """The audit for people: suggestions, unclear servers, profiles that consist of two, and the lines to accept."""
    lines = [
        f"{each.server_name}: {each.profile if each.matched else 'no rule'} -> {each.suggested} "
        f"({100 * (each.probability or 0.0):.0f} % sure)"
        for each in audit.suggestions
    ]
    lines += [
        f"{server.server_name}: {server.profile}, unclear: it behaves like no profile, or like several"
        for server in audit.servers
        if server.verdict == "unclear"
    ]
    lines += [
        f"{each.profile}: two kinds of servers, {', '.join(each.first_group)} and {', '.join(each.second_group)}"
        for each in audit.two_in_one
    ]
    if not lines:
        return "all servers behave like their profile"
    pins = audit.toml_lines()
    return "\n".join([*lines, *(["", "To accept, put these lines into fleet.toml:", *pins] if pins else [])])


def audit_document(audit: ProfileAudit) -> dict[str, Any]:
    """The audit as JSON: suggestions, unclear servers, profiles that consist of two, and counts by verdict."""
    verdicts = [server.verdict for server in audit.servers]
    return {
        "servers": len(audit.servers),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in get_args(Verdict)},
        "suggestions": [
            {
                "server_name": server.server_name,
                "profile": server.profile,
                "matched": server.matched,
                "suggested": server.suggested,
                "probability": round(server.probability or 0.0, 3),
            }
            for server in audit.suggestions
        ],
        "unclear": [server.server_name for server in audit.servers if server.verdict == "unclear"],
        "two_in_one": [
            {
                "profile": each.profile,
                "groups": [list(each.first_group), list(each.second_group)],
                "apart": round(each.apart, 2),
            }
            for each in audit.two_in_one
        ],
        "toml": "\n".join(audit.toml_lines()),
    }
