"""Rights of a sender for the records of a batch: servers, changes of their profile and of stored samples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from fleet_forecast.serving.clients import Client, Right
from fleet_forecast.serving.ingest.validation import CheckedBatch, RefusedServer, Unaccepted
from fleet_forecast.serving.storage.samples import Correction, Sample
from fleet_forecast.serving.storage.servers import NewNames
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.shard import Shard, owner_of
from server_profiles import ProfileRules, profile_of

LOG = logging.getLogger(__name__)
LOGGED_CHANGES = 5  # of one batch
REMEDY = "give one with it in the tokens file (tokens)"
FULL = "the number of servers is at its limit; raise max_servers, or delete servers (DELETE /api/v1/servers/{name})"
WRONG_SHARD = "wrong_shard"  # what records of other shards are counted as
MAX_SOURCES = 4  # names of clients and Prometheus servers that are kept for one server


class SenderChecks:
    """Checks accepted records against their sender's rights. Used by one thread; the counts by any."""

    def __init__(self, store: HistoryStore, rules: ProfileRules, shard: Shard | None, forward: bool) -> None:
        """shard: the part of the fleet whose samples are accepted, None: all; forward: those of others go to these."""
        self.profile_changes: Counter[str] = Counter()  # by "accepted" and "refused"
        self.corrections: Counter[str] = Counter()  # samples, by "accepted" and "refused"
        self.sources: dict[str, tuple[str, ...]] = {}  # server -> where its samples are from
        self._store, self._rules = store, rules
        self._shard, self._forward = shard, forward

    def refusal_of(self, client: Client, names: NewNames, may_forward: bool, server_name: str) -> RefusedServer | None:
        """Why samples of a server are refused; None if they are accepted, then a new name is reserved in `names`.

        may_forward: whether those of other shards are accepted where the daemon forwards.
        """
        if not client.may_write(server_name):
            remedy = "add a pattern for it in the tokens file"
            return RefusedServer(f"the token of {client.name} may not write this server; {remedy}")
        if self._shard is not None and not self._shard.has(server_name):
            return None if self._forward and may_forward else wrong_shard(self._shard, server_name)
        return None if names.may_add(server_name) else RefusedServer(FULL)

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

    def note_corrections(
        self, batch: CheckedBatch, found: Sequence[Correction], client: Client
    ) -> dict[int, Unaccepted]:
        """Log and count samples that differ from stored ones; returns those that were not stored, without the right."""
        accepted = Right.CORRECT in client.rights
        self.corrections[_result(accepted)] += len(found)
        servers = sorted({batch.samples[each.place].server_name for each in found})
        fields = {"servers": servers[:LOGGED_CHANGES], "samples": len(found), "client": client.name}
        LOG.warning("stored samples corrected" if accepted else "stored samples not corrected", extra=fields)
        if accepted:
            return {}
        right = f"{_token(client)} has no right correct; {REMEDY}"
        return {
            place: Unaccepted(name, sent, f"{stored} is stored for this server and time; {right}")
            for place, name, stored, sent in found
        }

    def note_source(self, batch: CheckedBatch, source: str) -> None:
        """Keep which clients of the tokens file and Prometheus servers wrote a server; log the second one of each.

        source: "" for a client without a name.
        """
        if not source:
            return
        for name in {sample.server_name for sample in batch.samples}:
            sources = self.sources.get(name, ())
            if source in sources or len(sources) >= MAX_SOURCES:
                continue
            self.sources[name] = (*sources, source)
            if len(sources) == 1:
                LOG.warning("server has two sources", extra={"server": name, "sources": self.sources[name]})

    def _profile_before(self, sample: Sample) -> str | None:
        """The profile that the sample would change, None if it changes none: a new server may have any."""
        known = None if sample.profile is None else self._store.servers.get(sample.server_name)
        if known is None or sample.profile == known.profile or self._store.last_step(known.server_id) is None:
            return None
        before, rule = profile_of(known.name, known.profile, self._rules)
        return None if rule is None or before == sample.profile else before


def wrong_shard(own: Shard, server_name: str) -> RefusedServer:
    """Why samples of another shard's server are refused."""
    owner = Shard(owner_of(server_name, own.count), own.count)
    return RefusedServer(
        f"a server of shard {owner}, this is shard {own}; send it there, or start with forward", WRONG_SHARD
    )


def _result(accepted: bool) -> str:
    return "accepted" if accepted else "refused"


def _token(client: Client) -> str:
    return f"the token of {client.name}" if client.name else "the token of all clients"
