"""The scaling and the prior from peers of a small fleet of one profile, for tests."""

from __future__ import annotations

import numpy as np

from fleet_forecast.features.peer_prior import PeerPrior, PeerSample, fit_peer_prior
from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers
from fleet_forecast.features.scaling import FleetScaling, fit_scaling
from fleet_forecast.features.seasonality import LagSteps


def fitted_prior(values: np.ndarray, context_steps: int) -> tuple[FleetScaling, PeerPrior]:
    """Fit both on float32 [server, step, 1], in percent; every server is a peer of the others."""
    servers = len(values)
    profiles = ("web",) * servers
    members = ProfileMembers.of([str(row) for row in range(servers)], profiles)
    scaling = fit_scaling(values, {"cpu": "percent"}, profiles, context_steps)
    peers = Peers(PeerTable.build(values, members, 0), members.mask(servers)).of_fleet(profiles, scaling.bounds)
    rows = np.ones(servers, dtype=np.int64)
    sample = PeerSample(values, scaling.bounds, np.arange(servers), rows, peers, 0, 1e-3 * scaling.scale)
    prior = fit_peer_prior(sample, LagSteps(context_steps, 8, context_steps, context_steps, 1), 8 * context_steps)
    assert prior is not None
    return scaling, prior
