"""Samples for tests of the store, and the means that a store holds."""

import numpy as np

from data_contract import METRICS
from fleet_forecast.serving.storage.samples import Sample

STEP = 300


def sample(name="a", second=0, cpu=50.0, profile=None, **values):
    measured = {"cpu_pct": cpu} | values
    return Sample(name, int(second * 1000), profile, None, tuple(measured.get(metric) for metric in METRICS))


def means_of(store, last_step=10**9):
    """{(server, step): {metric: mean}} of everything stored, after all changes were taken."""
    while store.changed_step_means(last_step).result(10):
        pass
    names = {server.server_id: name for name, server in store.servers.items()}
    return {
        (names[server_id], means.step): {
            metric: value for metric, value in zip(METRICS, row, strict=True) if not np.isnan(value)
        }
        for means in store.stored_step_means(0, last_step).result(10)
        for server_id, row in zip(means.server_ids.tolist(), means.means.tolist(), strict=True)
    }
