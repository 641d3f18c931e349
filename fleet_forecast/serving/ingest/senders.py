"""What a sender may do with the records of a batch.

The servers it may write; changes of their profile and of stored samples.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from fleet_forecast.serving.clients import Client, Right
from fleet_forecast.serving.ingest.validation import CheckedBatch
from fleet_forecast.serving.storage.samples import Correction, Sample
from fleet_forecast.serving.storage.servers import NewNames
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import ProfileRules, profile_of

LOG = logging.getLogger(__name__)
LOGGED_CHANGES = 5  # of one batch
REMEDY = "give one with it in the tokens file (tokens)"
FULL = "the number of servers is at its limit; raise max_servers, or delete servers (DELETE /api/v1/servers/{name})"
MAX_SOURCES = 4  # names of clients that are kept for one server


class SenderChecks:
    """Checks accepted records against their sender's rights. Used by one thread; the counts by any."""

    def __init__(self, store: HistoryStore, rules: ProfileRules) -> None:
        self.profile_changes: Counter[str] = Counter()  # by "accepted" and "refused"
        self.corrections: Counter[str] = Counter()  # samples, by "accepted" and "refused"
        self.sources: dict[str, tuple[str, ...]] = {}  # server -> clients of the tokens file that wrote it
        self._store, self._rules = store, rules

    def refusal_of(self, client: Client, names: NewNames, server_name: str) -> str | None:
        """Why samples of a server are refused; None if they are accepted, then a new name is reserved in `names`."""
        if not client.may_write(server_name):
            return f"the token of {client.name} may not write this server; add a pattern for it in the tokens file"
        return None if names.may_add(server_name) else FULL

    def check_profiles(self, batch: CheckedBatch, client: Client) -> None:
        """Log and count changed profiles; without the right the records are accepted with the profile as it was."""
        changes: dict[tuple[str, str], str] = {}  # (server, new profile) -> old profile
        for index, sample in enumerate(batch.samples):
            before = self._profile_before(sample)
            if before is None:
                continue
            changes[sample.server_name, str(sample.profile)] = before
            if Right.PROFILE not in client.rights:
                batch.samples[index] = sample._replace(profile=None)
        accepted = Right.PROFILE in client.rights
        self.profile_changes[_result(accepted)] += len(changes)
        for number, ((server, profile), before) in enumerate(changes.items()):
            if number < LOGGED_CHANGES:
                fields = {"server": server, "from": before, "to": profile, "client": client.name}
                LOG.warning("profile changed" if accepted else "profile not changed", extra=fields)
            if not accepted:
                right = f"{_token(client)} has no right profile; {REMEDY}"
                batch.notices.append(f"profile of {server}: stays {before}, not {profile}; {right}")

    def note_corrections(self, batch: CheckedBatch, found: Sequence[Correction], client: Client) -> None:
        """Log and count samples that differ from stored ones; without the right they were not stored."""
        accepted = Right.CORRECT in client.rights
        self.corrections[_result(accepted)] += len(found)
        servers = sorted({batch.samples[each.place].server_name for each in found})
        fields = {"servers": servers[:LOGGED_CHANGES], "samples": len(found), "client": client.name}
        LOG.warning("stored samples corrected" if accepted else "stored samples not corrected", extra=fields)
        if not accepted:
            batch.refuse(found, f"{_token(client)} has no right correct; {REMEDY}")

    def note_source(self, batch: CheckedBatch, client: Client) -> None:
        """Keep which clients of the tokens file wrote a server; log the second one of each."""
        if not client.name:
            return
        for name in {sample.server_name for sample in batch.samples}:
            sources = self.sources.get(name, ())
            if client.name in sources or len(sources) >= MAX_SOURCES:
                continue
            self.sources[name] = (*sources, client.name)
            if len(sources) == 1:
                LOG.warning("server has two sources", extra={"server": name, "clients": self.sources[name]})

    def _profile_before(self, sample: Sample) -> str | None:
        """The profile that the sample would change, None if it changes none: a new server may have any."""
        known = None if sample.profile is None else self._store.servers.get(sample.server_name)
        if known is None or sample.profile == known.profile or self._store.last_step(known.server_id) is None:
            return None
        before, rule = profile_of(known.name, known.profile, self._rules)
        return None if rule is None or before == sample.profile else before


def _result(accepted: bool) -> str:
    return "accepted" if accepted else "refused"


def _token(client: Client) -> str:
    return f"the token of {client.name}" if client.name else "the token of all clients"
