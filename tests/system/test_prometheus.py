"""Debian's Prometheus scrapes a real service, idle and then overloaded; whatever deploy/ asks it is asked here."""

import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.bench.serving import Server, free_port, serving
from tests.conftest import make_picture, png
from tests.deploy.manifests import DEPLOY, hpa_triggers, keda_triggers, read
from tests.deploy.test_grafana import PANELS

pytestmark = pytest.mark.system
SLOTS, CLIENTS = 4, 12
PATIENCE_S = 120
GRAFANAS = {"$namespace": ".*", "$__rate_interval": "1m"}
"""what Grafana fills in"""
QUIET = ("sdc_store_errors_total",)
"""metrics that have no series before something goes wrong"""


@dataclass
class Asked:
    """A Prometheus over its HTTP API."""

    client: httpx.Client

    def ask(self, expression: str, at: float | None = None) -> list[float]:
        """The values of an instant query, now or at a Unix time."""
        return [
            float(sample["value"][1]) for sample in self._get("query", query=expression, **({} if at is None else {"time": at}))["result"]
        ]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, what: str, **parameters: Any) -> dict[str, Any]:
        reply = self.client.get(f"/api/v1/{what}", params=parameters)
        assert reply.is_success, reply.text
        return reply.json()["data"]  # type: ignore[no-any-return]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "Prometheus did not see it"
            time.sleep(0.5)


@contextmanager
def prometheus(folder: Path, target: Server) -> Iterator[Asked]:
    """The shipped configuration and rules, with another target and once a second."""
    port, configuration = free_port(), read(DEPLOY / "prometheus" / "prometheus.yml")
    (job,) = configuration["scrape_configs"]
    assert job.pop("dns_sd_configs")
    job["static_configs"] = [{"targets": [f"127.0.0.1:{target.port}"]}]
    configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            asked = Asked(client)
            asked.until(lambda: _ready(client))
            asked.until(lambda: asked.ask('count_over_time(up{job="sdc"}[1m])') >= [5])
            yield asked
    finally:
        process.terminate()
        process.wait(30)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.TransportError:
        return False


@contextmanager
def overload(server: Server) -> Iterator[None]:
    """More clients than slots, who compress new pictures, look at them twice and come back at once when they are refused."""
    stop = threading.Event()

    def client(number: int) -> None:
        with httpx.Client(base_url=server.base, timeout=60) as http:
            for count in range(10**6):
                if stop.is_set():
                    return
                reply = http.post("/compress?max_bytes=2000", content=png(make_picture(96, 128, 1000 * number + count)))
                if reply.status_code == 201:
                    for _ in range(2):
                        http.get(reply.json()["links"]["webp"])
                time.sleep(0.02)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def seen(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Asked, dict[str, list[float]]]]:
    """A Prometheus that watches an overloaded service, and what the triggers said while it was idle."""
    folder = tmp_path_factory.mktemp("prometheus")
    settings = {"SDC_MODEL": str(small_model), "SDC_SLOTS": str(SLOTS), "OMP_NUM_THREADS": "1"}
    with serving(folder, folder / "log", **settings) as server, prometheus(folder, server) as asked:
        idle = {trigger.name: asked.ask(trigger.query) for trigger in (*keda_triggers(), *hpa_triggers())}
        idle["firing"] = asked.ask('ALERTS{alertstate="firing"}')
        with overload(server):
            utilisation, *others = keda_triggers()
            asked.until(lambda: asked.ask(utilisation.query) > [utilisation.threshold])
            asked.until(lambda: all(asked.ask(trigger.query) > [0.0] for trigger in others))
            asked.until(lambda: asked.ask("sdc:rejected:ratio_rate5m") > [0.01])
            asked.until(lambda: asked.ask('sum(rate(sdc_render_cache_total{result="hit"}[1m]))') > [0.0])
            yield asked, idle


def test_every_trigger_is_one_zero_when_idle(seen: tuple[Asked, dict[str, list[float]]]) -> None:
    _, idle = seen
    assert idle.pop("firing") == []
    assert len(idle) == 6
    assert all(values == [0.0] for values in idle.values()), idle


@pytest.mark.parametrize("name", ["utilisation", "queue-wait", "rejections"])
def test_every_trigger_is_one_number_and_above_its_threshold_under_overload(name: str, seen: tuple[Asked, dict[str, list[float]]]) -> None:
    asked, _ = seen
    (trigger,) = [each for each in keda_triggers() if each.name == name]
    (value,) = asked.ask(trigger.query)
    most = {"utilisation": 1.0, "queue-wait": 60.0, "rejections": 4.0}[name]
    least = {"utilisation": trigger.threshold, "queue-wait": 0.0, "rejections": 1.01}[name]  # how long four wait is the machine's affair
    assert least < value <= most


def test_a_trigger_has_no_value_where_nothing_was_scraped(seen: tuple[Asked, dict[str, list[float]]]) -> None:
    asked, _ = seen
    assert [asked.ask(trigger.query, at=time.time() - 86400) for trigger in keda_triggers()] == [[], [], []]


def test_every_rule_can_be_evaluated(seen: tuple[Asked, dict[str, list[float]]]) -> None:
    asked, _ = seen
    # it was over the limit a moment ago; rules are evaluated when their turn comes
    asked.until(lambda: any(rule["name"] == "SdcRejecting" and rule["state"] in ("pending", "firing") for rule in asked.rules()))
    found = asked.rules()
    assert [(rule["name"], rule["health"]) for rule in found] == [(rule["name"], "ok") for rule in found]
    states = {rule["name"]: rule["state"] for rule in found if rule["type"] == "alerting"}
    assert states.pop("SdcRejecting") in ("pending", "firing"), "and not back again"
    assert set(states.values()) == {"inactive"}, states
    for rule in found:
        if rule["type"] == "recording":
            assert asked.ask(rule["name"]), rule["name"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_shows_something(panel: dict[str, Any], seen: tuple[Asked, dict[str, list[float]]]) -> None:
    asked, _ = seen
    for target in panel["targets"]:
        expression = target["expr"]
        for variable, value in GRAFANAS.items():
            expression = expression.replace(variable, value)
        values = asked.ask(expression)
        if panel["type"] == "stat":
            assert len(values) == 1
        if not any(metric in expression for metric in QUIET):
            assert any(math.isfinite(value) for value in values), expression


def test_what_the_service_did_is_what_prometheus_says(seen: tuple[Asked, dict[str, list[float]]]) -> None:
    asked, _ = seen
    assert asked.ask('sum(sdc_slots{job="sdc",namespace="sdc"})') == [SLOTS]
    (most,) = asked.ask('max(max_over_time(sum(sdc_inflight{job="sdc"})[1m:1s]))')
    assert 0 < most <= SLOTS
    (served,), (refused,) = asked.ask('sum(sdc_requests_total{code="201"})'), asked.ask('sum(sdc_rejected_total{reason="slots"})')
    assert served > 0 and refused > 0
