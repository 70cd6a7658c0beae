"""Prometheus' own checker on its configuration, on the rules and their unit tests, and on autoscaling queries whose answer is known."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, hpa_triggers, keda_triggers, rules

pytestmark = pytest.mark.system
PROMETHEUS = DEPLOY / "prometheus"
MINUTES = 40
PER_SCRAPE = 10
"""seconds"""


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_and_rules_are_well_formed() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "rules.yml")


def test_rules_do_what_their_unit_tests_say() -> None:
    promtool("test", "rules", PROMETHEUS / "rules_test.yml")


def test_every_rule_has_a_unit_test() -> None:
    tests = (PROMETHEUS / "rules_test.yml").read_text()
    fired = {
        case["alertname"] for each in yaml.safe_load(tests)["tests"] for case in each.get("alert_rule_test", []) if case.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


def replica(name: str, inflight: float, wait_s: float, begun: float, refused: float, slots: int = 16, **other: str) -> dict[str, str]:
    """Samples of a replica over time: ``begun`` items a second that waited ``wait_s`` each, ``refused`` requests a second."""
    labels = {"job": "sdc", "namespace": "sdc", "instance": name} | other

    def series(metric: str, **more: str) -> str:
        return metric + "{" + ",".join(f'{key}="{value}"' for key, value in {**labels, **more}.items()) + "}"

    def growing(per_second: float) -> str:
        return f"0+{per_second * PER_SCRAPE:.9f}x{MINUTES * 60 // PER_SCRAPE}"

    def constant(value: float) -> str:
        return f"{value:.9f}x{MINUTES * 60 // PER_SCRAPE}"

    found = {
        series("sdc_inflight", op="render"): constant(inflight / 2),
        series("sdc_inflight", op="compress"): constant(inflight / 2),
        series("sdc_slots"): constant(slots),
        series("sdc_rejected_total", reason="client-gone"): growing(50),
        series("sdc_rejected_total", reason="stopping"): growing(50),
        series("sdc_rejected_total", reason="slots"): growing(refused / 2),
        series("sdc_rejected_total", reason="deadline-unreachable"): growing(refused / 2),
    }
    for lane, items in (("interactive", begun), ("bulk", 0.0)):
        for op in ("render", "encode"):
            found[series("sdc_queue_wait_seconds_count", op=op, lane=lane)] = growing(items / 2)
            found[series("sdc_queue_wait_seconds_sum", op=op, lane=lane)] = growing(items * wait_s / 2)
    return found


OTHERS = replica("x", 16, 30, 5, 50, namespace="staging") | replica("y", 16, 30, 5, 50, job="other")
"""full ones that must not be counted in"""
CASES: dict[str, tuple[dict[str, str], tuple[float, float, float]]] = {
    "idle": (replica("a", 0, 0, 0, 0), (0, 0, 0)),
    "one of two busy": (replica("a", 8, 0.4, 10, 0) | replica("b", 0, 0, 0, 0), (0.25, 0.4, 0)),
    "unlike waits": (replica("a", 8, 1.0, 15, 0) | replica("b", 2, 0.2, 5, 0), (5 / 16, 0.8, 0)),
    "a few refused, too few to count": (replica("a", 12, 0.7, 10, 0.09), (0.75, 0.7, 0)),
    "two refused for every one that is served": (replica("a", 16, 1.5, 10, 20), (1, 1.5, 3)),
    "all refused, none served": (replica("a", 16, 0, 0, 20), (1, 0, 4)),
}


@pytest.mark.parametrize("what", CASES)
@pytest.mark.parametrize("autoscaler", ["keda", "hpa"])
def test_a_query_gives_one_number_and_the_right_one(what: str, autoscaler: str, tmp_path: Path) -> None:
    samples, expected = CASES[what]
    triggers = keda_triggers() if autoscaler == "keda" else hpa_triggers()
    cases: list[dict[str, Any]] = [
        {"expr": trigger.query, "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": value}]}
        for trigger, value in zip(triggers, expected, strict=True)
    ]
    ask(cases, samples | OTHERS, tmp_path)


def test_what_was_busy_and_is_idle_reads_as_idle(tmp_path: Path) -> None:
    flat = {name: values.replace(f"x{MINUTES * 60 // PER_SCRAPE}", "x30 ") for name, values in replica("a", 8, 1, 10, 5).items()}
    ended = {
        name: values + ("0x200" if "sdc_inflight" in name else "16x200" if "sdc_slots" in name else "5000x200")
        for name, values in flat.items()
    }
    cases = [{"expr": each.query, "eval_time": "20m", "exp_samples": [{"labels": "{}", "value": 0}]} for each in keda_triggers()]
    ask(cases, ended, tmp_path)


def test_a_query_gives_nothing_when_nothing_is_scraped(tmp_path: Path) -> None:
    """So that `ignoreNullValues: "false"` and `fallback` have something to notice; a 0 would take replicas away."""
    ask([{"expr": each.query, "eval_time": "10m", "exp_samples": []} for each in keda_triggers()], OTHERS, tmp_path)


def ask(cases: list[dict[str, Any]], samples: dict[str, str], folder: Path) -> None:
    series = [{"series": name, "values": values} for name, values in samples.items()]
    test = {"interval": f"{PER_SCRAPE}s", "input_series": series, "promql_expr_test": cases}
    (folder / "test.yml").write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "10s", "tests": [test]}))
    promtool("test", "rules", folder / "test.yml")
