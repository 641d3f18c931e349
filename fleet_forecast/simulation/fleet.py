"""The servers of a fleet: names, profiles, and what is particular to each of them.

A server's habits depend on the seed, its profile and its number only, so a larger fleet holds the smaller one unchanged
and a server racked later is what it would have been from the start. Within a profile, levels come in opposite pairs:
even five servers together stand close to the profile's documented baseline, while any one of them differs from it.
Number 1 is a profile's typical server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet_forecast.simulation.randomness import even_uniform, normal, paired_normal, uniform
from server_profiles import ServerProfile

PROFILE_ORDER = tuple(ServerProfile)
# Name prefix and digits of each profile's simulated servers.
NAMES: Mapping[ServerProfile, tuple[str, int]] = {
    ServerProfile.ML_COMPUTE: ("ppml", 4),
    ServerProfile.DATABASE: ("ppdb", 3),
    ServerProfile.WEB_API: ("ppweb", 3),
    ServerProfile.CONDUCTOR_MGMT: ("ppcon", 2),
    ServerProfile.DATA_INGEST: ("ppetl", 3),
    ServerProfile.RISK_ANALYTICS: ("pprisk", 3),
    ServerProfile.GENERIC: ("ppgen", 3),
}
TROUBLE_PRONE_SHARE = 0.1
BUSIER_SHARE = 0.6  # correlation of a server's levels of CPU, disk, network and latency with its general busyness

_SERVER_KEYS = 1 << 32  # room for numbers within a profile


@dataclass(frozen=True)
class Habits:
    """What is particular to each server; arrays [server] unless said otherwise."""

    level: npt.NDArray[np.float32]  # [server, metric] standard normal: how far from the profile's typical server
    rhythm_strength: npt.NDArray[np.float32]  # exponent of demand, around 1
    phase_minutes: npt.NDArray[np.int64]  # the server's day runs this much early
    nervousness: npt.NDArray[np.float32]  # scales the noise, around 1
    time_scale: npt.NDArray[np.float32]  # scales all correlation times, around 1
    backup_start_minute: npt.NDArray[np.int64]  # nightly backup or log rotation, minute of the business day
    backup_minutes: npt.NDArray[np.int64]
    backup_strength: npt.NDArray[np.float32]  # disk I/O during the backup, as a multiple on top
    trouble_prone: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fleet:
    """Servers in a fixed order: by profile, then by number."""

    seed: int
    names: tuple[str, ...]
    profile_codes: npt.NDArray[np.int8]  # [server] position in PROFILE_ORDER
    numbers: npt.NDArray[np.int64]  # [server] number within the profile, from 1
    habits: Habits

    @classmethod
    def of(cls, counts: Mapping[str, int], seed: int, first_numbers: Mapping[str, int] | None = None) -> Fleet:
        """A fleet with so many servers of each profile, numbered from 1 or from `first_numbers`.

        Raises ValueError if there is no server, or a negative count.
        """
        for profile, count in counts.items():
            if count < 0:
                msg = f"the number of {profile} servers is {count}; give 0 or more"
                raise ValueError(msg)
        if not sum(counts.values()):
            raise ValueError("the fleet has no server; give at least one profile a number above 0")
        names, codes, numbers = [], [], []
        for code, profile in enumerate(PROFILE_ORDER):
            prefix, digits = NAMES[profile]
            first = (first_numbers or {}).get(profile, 1)
            for number in range(first, first + counts.get(profile, 0)):
                names.append(f"{prefix}{number:0{digits}d}")
                codes.append(code)
                numbers.append(number)
        profile_codes, server_numbers = np.array(codes, dtype=np.int8), np.array(numbers, dtype=np.int64)
        return cls(seed, tuple(names), profile_codes, server_numbers, _habits(seed, profile_codes, server_numbers))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """[server] the key of a server's random numbers."""
        return self.profile_codes.astype(np.int64) * _SERVER_KEYS + self.numbers

    def profile(self, server: int) -> ServerProfile:
        """Profile of the server at a position."""
        return PROFILE_ORDER[self.profile_codes[server]]

    def composition(self) -> dict[str, int]:
        """Number of servers by profile, those with none left out."""
        counts = np.bincount(self.profile_codes, minlength=len(PROFILE_ORDER))
        return {str(profile): int(count) for profile, count in zip(PROFILE_ORDER, counts, strict=True) if count}


def _habits(seed: int, codes: npt.NDArray[np.int8], numbers: npt.NDArray[np.int64]) -> Habits:
    profile = codes.astype(np.int64)
    keys = profile * _SERVER_KEYS + numbers

    def own(stream: int) -> npt.NDArray[np.float64]:
        return normal(seed, keys, stream)

    busy = paired_normal(numbers, seed, profile, 10)
    levels = np.empty((len(keys), 6), dtype=np.float32)
    for metric in range(6):
        alone = paired_normal(numbers, seed, profile, 11 + metric)
        # Memory is filled by what a server holds, not by how busy it is.
        levels[:, metric] = alone if metric == 1 else BUSIER_SHARE * busy + (1 - BUSIER_SHARE**2) ** 0.5 * alone
    return Habits(
        level=levels,
        rhythm_strength=np.exp(0.12 * own(1)).astype(np.float32),
        phase_minutes=np.clip(np.rint(8 * own(2)), -25, 25).astype(np.int64),
        nervousness=np.exp(0.12 * own(3)).astype(np.float32),
        time_scale=np.exp(0.25 * own(4)).astype(np.float32),
        backup_start_minute=np.floor(uniform(seed, keys, 5) * 7 * 60).astype(np.int64) + 22 * 60,
        backup_minutes=10 + np.floor(uniform(seed, keys, 6) * 30).astype(np.int64),
        backup_strength=(0.2 + 0.5 * uniform(seed, keys, 7)).astype(np.float32),
        trouble_prone=even_uniform(numbers, seed, profile, 8) < TROUBLE_PRONE_SHARE,
    )
