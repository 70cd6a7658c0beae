"""The simulator and three real processes: a short run, whose bounds are ten times too wide for a busy machine."""

import asyncio
from pathlib import Path

from service.bench.fleet.replica import Limits
from service.bench.fleet.verify import PROCESSES, Sent, compare, predict, processes
from service.settings import Settings

from .made import measured, picture

FIRST_S = 0.1


def test_three_processes_wait_about_as_long_as_predicted(small_model: Path) -> None:
    settings = Settings(model=small_model, slots=16)
    with processes(settings, FIRST_S) as servers:
        assert len({server.port for server in servers}) == PROCESSES
        calm, full = asyncio.run(compare(servers, settings, FIRST_S, 5.0, (0.5, 2.0)))
        served = sum(server.metrics()["sdc_batch_size_sum"] for server in servers)
    assert calm.requests > 10
    assert calm.measured_refused == calm.predicted_refused == 0
    assert 0.1 < calm.ratio < 10
    assert 0.1 < full.predicted[1] / full.measured[1] < 10
    assert full.measured[1] > 2 * FIRST_S  # there was a queue
    assert served > calm.requests


def test_a_prediction_follows_the_routes() -> None:
    """Two at once on one replica: the second waits for the first; on two replicas nobody waits."""
    material = measured(picture("compress", 0.2), picture("render", 0.2), max_batch=1)
    limits = Limits(16, 1, 1 << 40, 0.01, 2, 30.0)

    def waits(second: int) -> list[float]:
        sent = [Sent("render", replica, 5.0, 0.0, 200, {}) for replica in (0, second)]
        return [round(wait, 3) for wait in predict(sent, material, limits).wait_s]

    assert waits(0) == [0.0, 0.2]
    assert waits(2) == [0.0, 0.0]
