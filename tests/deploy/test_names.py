"""Every setting and every metric that deploy/ names exists."""

import json
import re
from pathlib import Path

import pytest
import yaml

from service.settings import Settings
from tests.deploy.manifests import DEPLOY, ROOT, hpa_triggers, keda_triggers, read, rules
from tests.telemetry.test_metrics import ours

BY_PROMETHEUS = {"up", "process_start_time_seconds", "process_resident_memory_bytes", "process_cpu_seconds_total"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
NOT_METRICS = {"sdc_autoscaling_utilisation", "sdc_autoscaling_queue_wait", "sdc_autoscaling_rejections"}


def texts() -> list[Path]:
    """Everything that is shipped to run the service somewhere."""
    found = [path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".yml", ".json", ".conf")]
    return [*found, ROOT / "docker-compose.yml", ROOT / "Dockerfile"]


def exported() -> set[str]:
    """Names of samples."""
    split = [line.split() for line in ours()]
    return {name + suffix for name, kind, *_ in split for suffix in SUFFIXES[kind]} | BY_PROMETHEUS


def expressions() -> dict[str, str]:
    """Everything that is asked of Prometheus, by where it stands."""
    found = {f"trigger {each.name}": each.query for each in (*keda_triggers(), *hpa_triggers())}
    found |= {f"rule {rule.get('alert') or rule['record']}": str(rule["expr"]) for rule in rules()}
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "sdc.json").read_text())
    for panel in dashboard["panels"]:
        found |= {f"panel {panel['title']} {target['refId']}": target["expr"] for target in panel.get("targets", [])}
    return found


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_exists(path: Path) -> None:
    known = {f"SDC_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bSDC_[A-Z_]+\b", path.read_text())) <= known


def test_every_metric_exists() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for where, expression in expressions().items():
        bare = re.sub(r'"[^"]*"', "", expression)
        assert set(re.findall(r"\b(?:sdc|process)_\w+", bare)) <= exported(), where
        assert set(re.findall(r"\bsdc:[\w:]+", bare)) <= recorded, where


def test_every_label_exists() -> None:
    labels = {name: set(rest) for name, _, *rest in (line.split() for line in ours())}
    of_the_scrape = {"job", "namespace", "instance", "le"}
    for where, expression in expressions().items():
        for name, selector in re.findall(r"\b(sdc_\w+)\{([^}]*)\}", expression):
            family = name if name in labels else re.sub(r"_(bucket|sum|count)$", "", name)
            asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert asked <= labels[family] | of_the_scrape, where


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_settings_of_an_overlay_are_taken(overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    literals: list[str] = []
    for folder in ("base", overlay):
        (generator,) = read(DEPLOY / "kubernetes" / folder / "kustomization.yaml")["configMapGenerator"]
        literals += generator["literals"]
    for literal in literals:
        name, _, value = literal.partition("=")
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.store_url.startswith("s3://")
    assert settings.slots < Settings.model_fields["slots"].default  # a full replica's wait is a second or two


def test_the_image_is_of_this_version() -> None:
    from service import __version__

    for overlay, suffix in (("cpu", ""), ("gpu", "-cuda")):
        (image,) = read(DEPLOY / "kubernetes" / overlay / "kustomization.yaml")["images"]
        assert image["newTag"] == __version__ + suffix


def test_both_copies_of_the_rules_are_alike() -> None:
    inside = read(DEPLOY / "kubernetes" / "monitoring" / "prometheusrule.yaml")["spec"]["groups"]
    assert inside == read(DEPLOY / "prometheus" / "rules.yml")["groups"]


def test_every_alert_leads_to_a_paragraph_of_the_handbook() -> None:
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    alerts = [rule for rule in rules() if "alert" in rule]
    for rule in alerts:
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/OPERATIONS.md" and anchor in anchors, rule["alert"]
        assert rule["annotations"]["summary"] and rule["labels"]["severity"] in ("critical", "warning")
    written = set(re.findall(r"^#+ (Sdc\w+)$", text, re.MULTILINE))
    assert written == {rule["alert"] for rule in alerts}


def test_yaml_has_no_key_twice() -> None:
    """PyYAML takes the last one in silence."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
        keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # type: ignore[no-untyped-call]
        assert len(keys) == len(set(map(str, keys))), f"{node.start_mark}: {keys}"
        return yaml.SafeLoader.construct_mapping(loader, node)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in texts():
        if path.suffix in (".yaml", ".yml"):
            list(yaml.load_all(path.read_text(), Strict))
