"""A daemon's history with given rows."""

from pathlib import Path

import pandas as pd

from data_contract import METRICS
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.serving.storage.store import HistoryStore


def store_history(path: Path, frame: pd.DataFrame) -> None:
    """Write the rows to a new history, as the daemon does."""
    store = HistoryStore(path, 300)
    columns = [frame[metric].tolist() if metric in frame else [None] * len(frame) for metric in METRICS]
    instants = (frame["timestamp"].astype("int64") // 10**6).tolist()
    rows = zip(frame["server_name"], instants, frame["profile"], zip(*columns, strict=True), strict=True)
    samples = [Sample(name, instant, profile, None, values) for name, instant, profile, values in rows]
    for first in range(0, len(samples), 2_000):
        store.append(samples[first : first + 2_000]).result(30)
    store.close()
