"""The shard of a server: a stable function, even shares, and few moves when a shard is added."""

import hashlib

import pytest

from fleet_forecast.shard import Shard, owner_of

NAMES = [f"pp{kind}{number:05d}" for kind in ("db", "web", "ml") for number in range(2_000)]


def test_the_owner_is_the_shard_with_the_largest_digest():
    for name in NAMES[:50]:
        digests = {k: hashlib.blake2b(f"{k}/{name}".encode(), digest_size=8).hexdigest() for k in range(1, 9)}
        assert owner_of(name, 8) == max(digests, key=digests.get)
    # Fixed for all time: a change of the function would move the servers of every running fleet.
    assert [owner_of(name, 8) for name in NAMES[:12]] == [1, 6, 8, 7, 3, 5, 2, 4, 3, 3, 1, 5]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_further_shard_takes_its_share_and_no_other_server_moves(count):
    before = [owner_of(name, count) for name in NAMES]
    after = [owner_of(name, count + 1) for name in NAMES]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {count + 1}
    share = 1 / (count + 1)
    assert abs(len(moved) / len(NAMES) - share) < 4 * (share * (1 - share) / len(NAMES)) ** 0.5


def test_every_server_has_exactly_one_shard():
    shards = [Shard(number, 5) for number in range(1, 6)]
    assert all(sum(shard.has(name) for shard in shards) == 1 for name in NAMES[:500])


def test_a_shard_is_written_as_its_number_and_the_number_of_all():
    assert Shard.of_text("2/8") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"
    assert not any(Shard.of_text("0/8").has(name) for name in NAMES[:100])


@pytest.mark.parametrize(
    "text", ["", "2", "00/8", "9/8", "0/0", "2/0", "-1/2", "2/8/1", " 2/8", "2/8 ", "2/1001", "a/b"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="write 2/8"):
        Shard.of_text(text)
