"""The durable store of received samples: one SQLite file, one connection, owned by one thread.

A sample is stored as received, for the retention. The mean of each server's samples is stored for every complete step,
for as long as the model looks back.

`append` returns a future that is done once the samples are on disk (WAL, synchronous=FULL).

A damaged file is set aside and a new one is created, at the start or when the damage is found in use. Receiving and
forecasting continue meanwhile, with the data in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import numpy as np

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.serving.storage.database import HistoryDatabase
from fleet_forecast.serving.storage.integrity import files_of
from fleet_forecast.serving.storage.reads import (
    RawPage,
    read_raw_samples,
    read_sample_means,
    read_server_means,
    read_step_means,
    read_step_range,
)
from fleet_forecast.serving.storage.samples import (
    Batch,
    Correction,
    KnownServer,
    RawSample,
    Sample,
    StepMeans,
)
from fleet_forecast.serving.storage.schema import Layout
from fleet_forecast.serving.storage.servers import NewNames
from fleet_forecast.serving.storage.thread import HistoryThread

RAW_SAMPLES_PER_READ = 10_000  # about 20 ms, in which waiting samples are not written
Result = TypeVar("Result")


class HistoryStore:
    """Samples on disk and the names of their servers. All methods may be called from any thread."""

    def __init__(
        self,
        path: Path,
        step_seconds: int,
        max_waiting_records: int = 50_000,
        max_servers: int = 20_000,
        metrics: Sequence[str] = METRICS,
    ) -> None:
        """Open, migrate or create the store and start its thread; a damaged file is set aside and a new one created.

        step_seconds is the step of a new file; an existing one keeps its own until `use_step`.
        metrics: the order of the values in samples and means. A file with other metrics is migrated.
        Raises HistoryLockedError if another process has the file, HistoryVersionError if newer software wrote it,
        OSError if it cannot be created.
        """
        self.path = path
        self._database = HistoryDatabase(path, Layout(step_seconds, tuple(metrics)), max_servers)
        self._thread = HistoryThread(self._database, max_waiting_records)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Order of the values in samples and means."""
        return self._database.metrics

    @property
    def step_seconds(self) -> int:
        """Length of a step."""
        return self._database.step_seconds

    @property
    def servers(self) -> dict[str, KnownServer]:
        """Servers by name; the store's thread adds some at any time."""
        return self._database.servers.by_name

    @property
    def leaving(self) -> dict[str, KnownServer]:
        """Servers of other shards by name, whose samples are in the file until they are handed over."""
        return self._database.servers.leaving

    def set_apart(self, is_own: Callable[[str], bool]) -> None:
        """Take the servers of other shards out of `servers` into `leaving`; to be called before the first sample."""
        self._database.servers.set_apart(is_own)

    @property
    def set_aside(self) -> Path | None:
        """The new name of a damaged file."""
        return self._database.set_aside

    @property
    def failure(self) -> str | None:
        """Why the last write failed; None after one that succeeded."""
        return self._thread.failure

    def waiting_records(self) -> int:
        """Records accepted and not yet on disk."""
        return self._thread.waiting_records

    def size_bytes(self) -> int:
        """Size of the file and its write-ahead log."""
        return sum(part.stat().st_size for part in files_of(self.path) if part.exists())

    def new_names(self) -> NewNames:
        """Reservations of new server names for one batch."""
        return NewNames(self._database.servers)

    def last_step(self, server_id: int) -> int | None:
        """Newest step the server sent a measurement for; None if it never did."""
        return self._database.servers.last_steps.get(server_id)

    def append(self, samples: Sequence[Sample], may_correct: bool = True) -> Future[list[Correction]]:
        """Store samples; the future is done when they are on disk, and has those that differ from stored ones.

        may_correct: whether these replace the stored values; otherwise they are not stored.
        Raises HistoryBusyError if too many wait. The future raises HistoryUnavailableError if writing failed; then
        none of these samples is stored.
        """
        return self._thread.append(Batch(samples, may_correct))

    def changed_step_means(self, last_step: int, most: int = 12) -> Future[list[StepMeans]]:
        """Compute and store the means of up to `most` steps up to `last_step` whose samples changed.

        Call again until the list is empty. Means that could not be stored (disk full) are nevertheless returned, and
        again in the next round, until they are stored.
        """
        return self._ask(lambda: self._database.take_means(last_step, most))

    def stored_step_means(self, first_step: int, last_step: int) -> Future[list[StepMeans]]:
        """Stored means of the steps from `first_step` to `last_step`."""
        metric_count = len(self.metrics)
        return self._ask(lambda: read_step_means(self._database.connection, metric_count, first_step, last_step))

    def server_step_means(self, server_id: int, first_step: int, last_step: int) -> Future[dict[int, np.ndarray]]:
        """Stored means of one server: float32 [metric] by step, of the steps in which it was measured."""
        database, metric_count = self._database, len(self.metrics)
        return self._ask(lambda: read_server_means(database.connection, metric_count, server_id, first_step, last_step))

    def server_sample_means(self, server_id: int, first_step: int, last_step: int) -> Future[dict[int, np.ndarray]]:
        """Means of one server's samples: float32 [metric] by step, of the steps that have samples."""
        database = self._database
        select = database.sql.server_means
        return self._ask(lambda: read_sample_means(database.connection, select, server_id, first_step, last_step))

    def step_range(self) -> Future[tuple[int, int]]:
        """First and last step of the file; the last is before the first if there is none."""
        database = self._database
        return self._ask(lambda: read_step_range(database.connection))

    def samples_of(
        self, server_ids: Sequence[int], first_step: int, last_step: int
    ) -> Future[dict[int, list[RawSample]]]:
        """Samples of some servers as received, sorted by time, by server id."""
        database, most = self._database, RAW_SAMPLES_PER_READ
        return self._ask(
            lambda: {
                server_id: read_raw_samples(
                    database.connection, database.sql.raw, RawPage(server_id, first_step, last_step, -1, most)
                )
                for server_id in server_ids
            }
        )

    def raw_samples(
        self, server_id: int, first_step: int, last_step: int, after_ms: int = -1, most: int = RAW_SAMPLES_PER_READ
    ) -> Future[list[RawSample]]:
        """Samples of one server as received after a time, sorted by time; `most` at most."""
        database, page = self._database, RawPage(server_id, first_step, last_step, after_ms, most)
        return self._ask(lambda: read_raw_samples(database.connection, database.sql.raw, page))

    def delete_server(self, name: str) -> Future[bool]:
        """Delete a server and its samples; the result is whether it was known. It returns with its next sample."""
        return self._ask(lambda: self._database.delete_server(name))

    def expire(self, first_sample_step: int, first_mean_step: int, first_step_of_new: int = 0) -> Future[int]:
        """Delete old samples (a dozen steps of them), old means, and servers that sent nothing since.

        first_step_of_new: servers with few measured steps are deleted if they sent nothing from this step on.

        Returns the number of steps whose samples were deleted; call again until it is 0.
        """
        return self._ask(lambda: self._database.expire(first_sample_step, first_mean_step, first_step_of_new))

    def use_step(self, step_seconds: int) -> Future[None]:
        """Assign all samples to steps of another length; their means are computed again."""
        return self._ask(lambda: self._database.use_step(step_seconds))

    def pulled_until(self, prometheus: str) -> Future[int | None]:
        """Seconds since 1970 up to which samples were pulled from a Prometheus; None if they never were."""
        return self._ask(lambda: self._database.pulled_until(prometheus))

    def set_pulled_until(self, prometheus: str, seconds: int) -> Future[None]:
        """Store up to which time samples were pulled from a Prometheus."""
        return self._ask(lambda: self._database.set_pulled_until(prometheus, seconds))

    def close(self) -> None:
        """Write the waiting samples, close the file and end the thread. May be called twice."""
        self._thread.close()

    def _ask(self, work: Callable[[], Result]) -> Future[Result]:
        return self._thread.ask(work)
