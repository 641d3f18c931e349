"""Turns on the forecast worker."""

import asyncio

import pytest

from fleet_forecast.serving.forecasts.turns import WorkerBusyError, WorkerTurns


def test_a_cycle_goes_before_the_requests_that_wait():
    order = []

    async def request(turns, name):
        async with turns.request():
            order.append(name)
            await asyncio.sleep(0.01)

    async def run():
        turns = WorkerTurns(5.0)
        first, second = (asyncio.create_task(request(turns, name)) for name in ("first", "second"))
        await asyncio.sleep(0.001)
        async with turns.cycle():  # while the first request runs
            await first
            order.append("cycle")
            await asyncio.sleep(0.02)
            assert order == ["first", "cycle"]
        await second

    asyncio.run(run())
    assert order == ["first", "cycle", "second"]


def test_a_request_gives_up_after_a_time_and_the_next_one_gets_its_turn():
    async def run():
        turns = WorkerTurns(0.02)
        async with turns.cycle():
            with pytest.raises(WorkerBusyError, match="try again"):
                async with turns.request():
                    pass
        async with turns.request():
            return "done"

    assert asyncio.run(run()) == "done"
