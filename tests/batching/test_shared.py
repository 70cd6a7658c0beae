import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import REGISTRY

from service.batching.shared import SharedRuns
from service.errors import DeadlineMissed, Overloaded


class Work:
    """Counts its runs; each waits at the gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = self.cancelled = 0
        self.refuse = 0

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if number <= self.refuse:
            raise Overloaded("the deadline cannot be met", 1)
        return number


def run(scenario: Callable[[SharedRuns[int], Work], Awaitable[None]]) -> None:
    async def main() -> None:
        runs: SharedRuns[int] = SharedRuns()
        await asyncio.wait_for(scenario(runs, Work()), 20)
        assert not runs._runs, "nothing may be remembered"

    asyncio.run(main())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_identical_calls_at_once_share_one_run() -> None:
    async def scenario(runs: SharedRuns[int], work: Work) -> None:
        before = REGISTRY.get_sample_value("sdc_coalesced_total")
        tasks = [asyncio.create_task(runs.run("same", work)) for _ in range(10)]
        other = asyncio.create_task(runs.run("other", work))
        await settle()
        assert work.begun == 2
        work.gate.set()
        assert await asyncio.gather(*tasks, other) == [1] * 10 + [2]
        assert REGISTRY.get_sample_value("sdc_coalesced_total") == before + 9
        assert await runs.run("same", work) == 3

    run(scenario)


def test_if_the_first_leaves_the_others_still_get_it() -> None:
    async def scenario(runs: SharedRuns[int], work: Work) -> None:
        tasks = [asyncio.create_task(runs.run("same", work)) for _ in range(3)]
        await settle()
        tasks[0].cancel()
        await settle()
        work.gate.set()
        assert await asyncio.gather(*tasks[1:]) == [1, 1]
        assert tasks[0].cancelled()
        assert work.cancelled == 0

    run(scenario)


def test_when_all_have_left_nothing_goes_on() -> None:
    async def scenario(runs: SharedRuns[int], work: Work) -> None:
        tasks = [asyncio.create_task(runs.run("same", work)) for _ in range(3)]
        await settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settle()
        assert work.cancelled == 1
        late = asyncio.create_task(runs.run("same", work))
        work.gate.set()
        assert await late == 2

    run(scenario)


def test_an_error_is_everybodys() -> None:
    async def scenario(runs: SharedRuns[int], work: Work) -> None:
        async def fails() -> int:
            await work()
            raise ValueError

        tasks = [asyncio.create_task(runs.run("same", fails)) for _ in range(3)]
        await settle()
        work.gate.set()
        assert all(isinstance(error, ValueError) for error in await asyncio.gather(*tasks, return_exceptions=True))
        assert work.begun == 1

    run(scenario)


def test_a_refusal_is_only_the_first_callers() -> None:
    """Its deadline may have been nearer than that of whoever joined."""

    async def scenario(runs: SharedRuns[int], work: Work) -> None:
        work.refuse = 1
        tasks = [asyncio.create_task(runs.run("same", work)) for _ in range(3)]
        await settle()
        work.gate.set()
        first, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, Overloaded)
        assert others == [2, 2]

    run(scenario)


def test_whoever_joins_waits_no_longer_than_his_own_deadline() -> None:
    """Whoever began has his in the call.  The others keep their run."""

    async def scenario(runs: SharedRuns[int], work: Work) -> None:
        before = REGISTRY.get_sample_value("sdc_rejected_total", {"reason": "deadline-passed"})
        tasks = [asyncio.create_task(runs.run("same", work, time.monotonic() + seconds)) for seconds in (0.0, 0.02, 60.0)]
        await asyncio.wait([tasks[1]])
        with pytest.raises(DeadlineMissed):
            await tasks[1]
        assert REGISTRY.get_sample_value("sdc_rejected_total", {"reason": "deadline-passed"}) == before + 1
        work.gate.set()
        assert await asyncio.gather(tasks[0], tasks[2]) == [1, 1]
        assert work.cancelled == 0

    run(scenario)


def test_a_run_that_everybody_left_fails_without_a_word() -> None:
    async def scenario(runs: SharedRuns[int], work: Work) -> None:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))

        async def fails() -> int:
            try:
                return await work()
            finally:
                raise ValueError

        task = asyncio.create_task(runs.run("same", fails))
        await settle()
        task.cancel()
        await asyncio.wait([task])
        await settle()
        assert work.cancelled == 1
        del task
        gc.collect()
        assert not told

    run(scenario)


def test_whoever_would_be_refused_alone_is_refused() -> None:
    async def scenario(runs: SharedRuns[int], work: Work) -> None:
        work.refuse = 99
        work.gate.set()
        for _ in range(3):
            with pytest.raises(Overloaded):
                await runs.run("same", work)

    run(scenario)
