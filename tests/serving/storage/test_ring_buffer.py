"""The ring buffer of the newest steps in memory."""

import numpy as np
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fleet_forecast.serving.storage.ring_buffer import BLOCK_STEPS, NEVER, RingBuffer
from fleet_forecast.serving.storage.samples import StepMeans


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 90), st.sampled_from([1, 2, 70])), min_size=1, max_size=30),
    asked=st.integers(0, 95),
    length=st.integers(1, 12),
)
def test_the_ring_buffer_holds_the_same_values_as_a_plain_table(steps, asked, length):
    buffer, table = RingBuffer(8, 1), {}
    for value, (step, server) in enumerate(steps):
        table = {cell: kept for cell, kept in table.items() if cell[1] != step} | {(server, step): float(value)}
        buffer.put(StepMeans(step, np.array([server], np.int32), np.array([[value]], np.float32)))
    newest = max(step for step, _ in steps)
    for server in (1, 2, 70):
        history = buffer.history([server], np.array([asked]), length)[0, :, 0]
        expected = []
        for step in range(asked - min(length, 8) + 1, asked + 1):
            inside = newest - 8 < step <= newest
            expected.append(table.get((server, step), np.nan) if inside else np.nan)
        np.testing.assert_array_equal(history, np.array(expected, np.float32))


def test_last_measured_looks_back_no_further_than_asked():
    buffer = RingBuffer(10, 1)
    buffer.put(StepMeans(5, np.array([1, 2], np.int32), np.array([[1.0], [np.nan]], np.float32)))
    buffer.advance(8)
    assert buffer.last_measured([1, 2], 8, 4).tolist() == [5, NEVER]
    assert buffer.last_measured([1, 2], 8, 3).tolist() == [NEVER, NEVER]


def test_new_servers_use_the_memory_of_dropped_ones():
    buffer = RingBuffer(4, 1)
    for server in range(1000):
        buffer.put(StepMeans(server // 10, np.array([server], np.int32), np.ones((1, 1), np.float32)))
        buffer.drop([server])
    assert len(buffer._block_of) == 64
    assert len(buffer._blocks) <= 129
    assert np.isnan(buffer.history([5000], np.array([99]), 4)).all()


def test_memory_follows_measured_history():
    buffer, servers = RingBuffer(300, 6), 1000
    ids = np.arange(servers, dtype=np.int32)
    buffer.put(StepMeans(1000, ids, np.ones((servers, 6), np.float32)))
    one_block = buffer._blocks.nbytes
    assert one_block < 1.2 * servers * BLOCK_STEPS * 6 * 4  # of 13 blocks that a whole history needs
    buffer.put(StepMeans(1001, ids + servers, np.full((servers, 6), np.nan, np.float32)))
    buffer.history(list(range(5000, 9000)), np.full(4000, 1001), 300)
    assert buffer._blocks.nbytes == one_block  # not for servers without a measurement
    buffer.advance(1000 + 300 + 2 * BLOCK_STEPS)
    assert len(buffer._free_blocks) == len(buffer._blocks) - 1
