"""The dashboard and what provisions it, as far as they can be read without Grafana; tests/system/test_prometheus.py asks its questions."""

import json
from typing import Any

from tests.deploy.manifests import DEPLOY, ROOT, keda_triggers, read

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "sdc.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
UNITS = {"short", "s", "percentunit", "reqps", "ops", "bytes", "suffix:px/s"}
"""of Grafana's formats"""


def test_every_panel_says_what_it_shows() -> None:
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert all(titles) and len(titles) == len(set(titles))
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"] and all(target["expr"] and target["legendFormat"] for target in panel["targets"]), panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))


def test_panels_do_not_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for column in range(at["x"], at["x"] + at["w"]):
            for line in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((column, line), panel["title"]) == panel["title"]
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identities) == len(set(identities))


def test_everything_asks_the_chosen_source_for_the_chosen_namespace() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["expr"].count("{") == target["expr"].count('job="sdc",namespace=~"$namespace"'), target["expr"]
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "namespace"]


def test_probes_and_scrapes_are_no_requests() -> None:
    asked = [target["expr"] for panel in PANELS for target in panel["targets"] if "sdc_requests_total" in target["expr"]]
    assert asked and all('op!~"livez|readyz|metrics"' in expression for expression in asked)


def test_it_shows_what_the_autoscaler_sees() -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == "What the autoscaler sees"]
    shown = {target["legendFormat"]: target["expr"].replace('namespace=~"$namespace"', 'namespace="sdc"') for target in panel["targets"]}
    assert shown == {each.name: f"{each.query} / {each.threshold:g}" for each in keda_triggers()}


def test_it_is_provisioned() -> None:
    (source,) = read(DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert source["uid"] == DASHBOARD["templating"]["list"][0]["current"]["value"]
    assert source["jsonData"]["timeInterval"] == read(DEPLOY / "prometheus" / "prometheus.yml")["global"]["scrape_interval"]
    (provider,) = read(DEPLOY / "grafana" / "provisioning" / "dashboards" / "sdc.yml")["providers"]
    mounts = read(ROOT / "docker-compose.yml")["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
