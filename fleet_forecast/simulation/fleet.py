"""The servers of a simulated fleet: names, profiles and individual traits.

The traits of a server depend on the seed, its profile and its number only. A larger fleet therefore contains the
smaller one unchanged, and a server added later equals one that was there from the start. Levels within a profile come
in opposite pairs: the mean of as few as five servers is close to the profile's baseline. Number 1 is a typical server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.simulation.metric_model import profile_order, simulated
from fleet_forecast.simulation.randomness import even_uniform, normal, paired_normal, uniform

INCIDENT_PRONE_SHARE = 0.1
BUSY_CORRELATION = 0.6  # of a server's levels (except memory) with its general utilisation

_SERVER_KEYS = 1 << 32  # room for numbers within a profile


@dataclass(frozen=True)
class ServerTraits:
    """Individual traits of each server; arrays [server] unless another shape is given."""

    level: npt.NDArray[np.float32]  # [server, metric] standard normal: deviation from the profile's typical server
    rhythm_strength: npt.NDArray[np.float32]  # exponent of demand, around 1
    phase_minutes: npt.NDArray[np.int64]  # how much earlier the server's day begins
    noise_scale: npt.NDArray[np.float32]  # scales the noise, around 1
    time_scale: npt.NDArray[np.float32]  # scales all correlation times, around 1
    backup_start_minute: npt.NDArray[np.int64]  # nightly backup or log rotation, minute of the business day
    backup_minutes: npt.NDArray[np.int64]
    backup_strength: npt.NDArray[np.float32]  # disk I/O during the backup, as a multiple on top
    incident_prone: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fleet:
    """Servers in a fixed order: by profile, then by number."""

    seed: int
    names: tuple[str, ...]
    profile_codes: npt.NDArray[np.int16]  # [server] position in profile_order()
    numbers: npt.NDArray[np.int64]  # [server] number within the profile, from 1
    traits: ServerTraits

    @classmethod
    def of(cls, counts: Mapping[str, int], seed: int, first_numbers: Mapping[str, int] | None = None) -> Fleet:
        """A fleet with `counts` servers of each profile, numbered from 1 or from `first_numbers`.

        Raises ValueError if there is no server or a count is negative.
        """
        for profile, count in counts.items():
            if count < 0:
                raise ValueError(f"the number of {profile} servers is {count}; give 0 or more")
        if not sum(counts.values()):
            raise ValueError("the fleet has no server; give at least one profile a number above 0")
        for profile, count in counts.items():
            if count and not PROFILES[profile].baselines:
                raise ValueError(f"profile {profile} cannot be simulated; give it baselines in the fleet file")
        names, codes, numbers = [], [], []
        for code, profile in enumerate(profile_order()):
            first = (first_numbers or {}).get(profile, 1)
            for number in range(first, first + counts.get(profile, 0)):
                names.append(PROFILES[profile].server_name(number))
                codes.append(code)
                numbers.append(number)
        profile_codes, server_numbers = np.array(codes, dtype=np.int16), np.array(numbers, dtype=np.int64)
        return cls(seed, tuple(names), profile_codes, server_numbers, _traits(seed, profile_codes, server_numbers))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """[server] the key of a server's random numbers."""
        return self.profile_codes.astype(np.int64) * _SERVER_KEYS + self.numbers

    @property
    def profile_keys(self) -> npt.NDArray[np.int64]:
        """[server] the key of the random numbers that the servers of a profile share; no server has number 0."""
        return self.profile_codes.astype(np.int64) * _SERVER_KEYS

    def profile(self, server: int) -> str:
        """Profile of the server at a position."""
        return profile_order()[self.profile_codes[server]]

    def composition(self) -> dict[str, int]:
        """Number of servers by profile, without profiles that have none."""
        counts = np.bincount(self.profile_codes, minlength=len(profile_order()))
        return {str(profile): int(count) for profile, count in zip(profile_order(), counts, strict=True) if count}


def _traits(seed: int, codes: npt.NDArray[np.int16], numbers: npt.NDArray[np.int64]) -> ServerTraits:
    profile = codes.astype(np.int64)
    keys = profile * _SERVER_KEYS + numbers

    def own(stream: int) -> npt.NDArray[np.float64]:
        return normal(seed, keys, stream)

    busy = paired_normal(numbers, seed, profile, 10)
    metrics = simulated()
    levels = np.empty((len(keys), len(metrics)), dtype=np.float32)
    for metric in range(len(metrics)):
        alone = paired_normal(numbers, seed, profile, 11 + metric)
        # Memory depends on the data that a server holds, not on its utilisation.
        mixed = BUSY_CORRELATION * busy + (1 - BUSY_CORRELATION**2) ** 0.5 * alone
        levels[:, metric] = alone if metric == metrics.memory else mixed
    return ServerTraits(
        level=levels,
        rhythm_strength=np.exp(0.12 * own(1)).astype(np.float32),
        phase_minutes=np.clip(np.rint(8 * own(2)), -25, 25).astype(np.int64),
        noise_scale=np.exp(0.12 * own(3)).astype(np.float32),
        time_scale=np.exp(0.25 * own(4)).astype(np.float32),
        backup_start_minute=np.floor(uniform(seed, keys, 5) * 7 * 60).astype(np.int64) + 22 * 60,
        backup_minutes=10 + np.floor(uniform(seed, keys, 6) * 30).astype(np.int64),
        backup_strength=(0.2 + 0.5 * uniform(seed, keys, 7)).astype(np.float32),
        incident_prone=even_uniform(numbers, seed, profile, 8) < INCIDENT_PRONE_SHARE,
    )
