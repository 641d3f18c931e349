"""Which shard of a fleet has a server: rendezvous hashing (Thaler and Ravishankar 1998, highest random weight).

The weight of shard K for a server is the number in the 8 bytes, big-endian, of the BLAKE2b digest of the UTF-8 text
"K/NAME", with a digest size of 8. The server is of the shard with the largest weight. A shard that is added takes one
of N + 1 servers from the N others, and no server moves between those. The numbers of a fleet are 1 to N.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

MOST_SHARDS = 1_000
_CACHED_NAMES = 100_000


@dataclass(frozen=True)
class Shard:
    """One shard of a fleet: its number, from 1, and the number of all. Number 0 has no server."""

    number: int
    count: int

    @classmethod
    def of_text(cls, text: str) -> Shard:
        """Shard 2 of 8 from 2/8. Raises ValueError."""
        found = re.fullmatch(r"(0|[1-9][0-9]{0,3})/([1-9][0-9]{0,3})", text)
        number, count = map(int, found.groups()) if found else (1, 0)
        if not number <= count <= MOST_SHARDS:
            raise ValueError(f"is not a shard; write 2/8 for the second of eight, at most {MOST_SHARDS:,}")
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, server_name: str) -> bool:
        """Whether a server is of this shard."""
        return owner_of(server_name, self.count) == self.number


@lru_cache(maxsize=_CACHED_NAMES)
def owner_of(server_name: str, count: int) -> int:
    """Number of the shard of a fleet of `count` shards that has a server."""
    return max(range(1, count + 1), key=lambda number: _weight(number, server_name))


def _weight(number: int, server_name: str) -> int:
    return int.from_bytes(blake2b(f"{number}/{server_name}".encode(), digest_size=8).digest(), "big")
