"""What `kubectl apply -k` would send: rendered, held against the schemas, and read for what must be so."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.settings import BUNDLED_MODEL, Settings
from tests.deploy.manifests import KUBERNETES, OVERLAYS, Document, read, rendered, the

pytestmark = pytest.mark.system
VERSION = "1.33"
"""of Kubernetes, whose schemas are asked"""
SCHEMAS = {
    kind: json.loads((Path(__file__).parent / "schemas" / f"{kind.lower()}.json").read_text())
    for kind in ("ScaledObject", "ServiceMonitor", "PrometheusRule")
}


def check(document: Document) -> None:
    """Raise ValidationError for what a schema does not allow, a word it does not know above all."""
    if document["kind"] in SCHEMAS:
        jsonschema.validate(document, SCHEMAS[document["kind"]])
    else:
        kubernetes_validate.validate(document, VERSION, strict=True)


def containers(deployment: Document) -> list[Document]:
    spec = deployment["spec"]["template"]["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def environment(documents: tuple[Document, ...]) -> dict[str, str]:
    """What the container is given, without what comes from the Secret and from its limits."""
    (container,) = the("Deployment", documents)["spec"]["template"]["spec"]["containers"]
    return {**the("ConfigMap", documents)["data"], **{each["name"]: each["value"] for each in container["env"] if "value" in each}}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def documents(overlay: str) -> tuple[Document, ...]:
    return rendered(overlay)


def test_it_fits_the_schemas(documents: tuple[Document, ...]) -> None:
    for document in documents:
        check(document)


def test_every_folder_is_one_that_is_tested() -> None:
    folders = {path.parent.name for path in KUBERNETES.rglob("kustomization.yaml")}
    components = {name for name in folders if read(KUBERNETES / name / "kustomization.yaml")["kind"] == "Component"}
    assert folders - components == {*OVERLAYS, "base"}
    assert components == {"hpa", "keda", "monitoring", "other-models"}


FREE = ("matchLabels", "labels", "data", "limits", "requests", "metadata")
"""where the words are the user's own: labels, settings, resources, and the parameters of a KEDA trigger"""


def misspelt(document: Any) -> Iterator[Any]:
    """Copies, each with a word that no schema knows in one of its objects."""
    if isinstance(document, dict):
        yield {**document, "misspelt": {}}
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        if key not in FREE and isinstance(value, (dict, list)):
            for wrong in misspelt(value):
                copy = document.copy()
                copy[key] = wrong
                yield copy


def test_the_schemas_notice_a_misspelt_word() -> None:
    tried = 0
    for document in (*rendered("gpu-keda"), the("HorizontalPodAutoscaler", rendered("cpu-hpa"))):
        for wrong in misspelt(document):
            tried += 1
            with pytest.raises(jsonschema.ValidationError):
                check(wrong)
    assert tried > 100


def test_one_autoscaler_or_none(overlay: str, documents: tuple[Document, ...]) -> None:
    scalers = [each["kind"] for each in documents if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    assert scalers == {"keda": ["ScaledObject"], "hpa": ["HorizontalPodAutoscaler"]}.get(overlay.partition("-")[2], [])
    assert "replicas" not in the("Deployment", documents)["spec"]  # every apply would undo what the autoscaler did
    for scaler in (each for each in documents if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")):
        assert scaler["spec"]["scaleTargetRef"]["name"] == the("Deployment", documents)["metadata"]["name"]


def test_a_first_apply_claims_one_gpu() -> None:
    """Before anything was scraped, KEDA takes what `fallback` says."""
    assert {name: the("ScaledObject", rendered(name))["spec"]["fallback"]["replicas"] for name in ("cpu-keda", "gpu-keda")} == {
        "cpu-keda": 4,
        "gpu-keda": 1,
    }


def test_it_needs_no_kinds_of_others_without_an_autoscaler() -> None:
    for overlay in ("cpu", "gpu"):
        assert not {each["kind"] for each in rendered(overlay)} & set(SCHEMAS)


def test_everything_is_in_one_namespace_and_selected_by_one_label(documents: tuple[Document, ...]) -> None:
    label = {"app.kubernetes.io/name": "sdc"}
    assert {each["metadata"].get("namespace") for each in documents if each["kind"] != "Namespace"} == {
        the("Namespace", documents)["metadata"]["name"]
    }
    deployment = the("Deployment", documents)
    assert deployment["spec"]["template"]["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"] == label
    assert the("Service", documents)["spec"]["selector"] == label
    assert the("PodDisruptionBudget", documents)["spec"]["selector"]["matchLabels"] == label
    assert the("NetworkPolicy", documents)["spec"]["podSelector"]["matchLabels"] == label
    for monitor in (each for each in documents if each["kind"] == "ServiceMonitor"):
        service = the("Service", documents)
        assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
        assert [each["port"] for each in monitor["spec"]["endpoints"]] == [each["name"] for each in service["spec"]["ports"]]
        assert service["metadata"]["name"] == "sdc"  # the label `job` of every query
        for endpoint in monitor["spec"]["endpoints"]:  # who still fetches weights is not down
            assert {"sourceLabels": ["__meta_kubernetes_pod_phase"], "regex": "Running", "action": "keep"} in endpoint["relabelings"]


def test_nothing_runs_as_root_or_writes_where_it_should_not(documents: tuple[Document, ...]) -> None:
    pod = the("Deployment", documents)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is the("ServiceAccount", documents)["automountServiceAccountToken"] is False
    writable = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    for container in containers(the("Deployment", documents)):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts["/tmp"]["name"] in writable
        assert {"name": "HOME", "value": "/tmp"} in container["env"]
        assert container["resources"]["requests"].keys() <= container["resources"]["limits"].keys()
    user = the("Deployment", documents)["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}" in (KUBERNETES.parents[1] / "Dockerfile").read_text()


def test_a_replica_that_stops_finishes_what_it_has(documents: tuple[Document, ...]) -> None:
    pod = the("Deployment", documents)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep" and int(seconds) >= 5
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + int(environment(documents)["SDC_SHUTDOWN_S"])


def test_probes(overlay: str, documents: tuple[Document, ...]) -> None:
    (container,) = the("Deployment", documents)["spec"]["template"]["spec"]["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    assert environment(documents)["SDC_PORT"] == str(container["ports"][0]["containerPort"])
    assert environment(documents)["SDC_HOST"] == "0.0.0.0"
    budget = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
    assert budget == (600 if overlay.startswith("gpu") else 300)  # several times a start, and no longer: it hides one that hangs


def test_one_gpu_is_not_asked_for_twice(overlay: str, documents: tuple[Document, ...]) -> None:
    deployment = the("Deployment", documents)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
    rolling = deployment["spec"]["strategy"]["rollingUpdate"]
    assert (gpus, rolling["maxSurge"]) == ((1, 0) if overlay.startswith("gpu") else (0, 1))
    assert rolling["maxUnavailable"] == 1 - rolling["maxSurge"]
    assert environment(documents)["SDC_DEVICE"] == ("cuda" if gpus else "cpu")


def test_weights_come_by_init_container_and_volume() -> None:
    documents = rendered("gpu")
    pod = the("Deployment", documents)["spec"]["template"]["spec"]
    (init,), (container,) = pod["initContainers"], pod["containers"]
    given = environment(documents)
    where = {mount["mountPath"]: mount for mount in container["volumeMounts"]}[given["SDC_MODELS_DIR"]]
    assert where["readOnly"] and not {mount["mountPath"]: mount for mount in init["volumeMounts"]}[given["SDC_MODELS_DIR"]].get("readOnly")
    claim = the("PersistentVolumeClaim", documents)
    (volume,) = [each for each in pod["volumes"] if each["name"] == where["name"]]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert init["image"] == container["image"]
    assert "initContainers" not in the("Deployment", rendered("cpu"))["spec"]["template"]["spec"]  # the bundled model is in the image


def test_only_the_store_may_be_anywhere_and_the_handbook_tells_the_rest(documents: tuple[Document, ...]) -> None:
    policy = the("NetworkPolicy", documents)["spec"]
    handbook = (KUBERNETES.parents[1] / "docs" / "DEPLOY.md").read_text()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] for rule in policy["ingress"])
    assert [rule["ports"] for rule in policy["egress"] if not rule.get("to")] == [[{"port": 443, "protocol": "TCP"}]]
    for rule in (*policy["ingress"], *policy["egress"]):
        assert all(str(each["port"]) in handbook for each in rule["ports"])
        for peer in (*rule.get("from", []), *rule.get("to", [])):
            if "ipBlock" in peer:
                address, _, bits = peer["ipBlock"]["cidr"].partition("/")
                assert address in handbook and bits == "32"
            for name, value in peer.get("namespaceSelector", {}).get("matchLabels", {}).items():
                assert (f"`{value}`" if name == "kubernetes.io/metadata.name" else f"`{name}={value}`") in handbook


@pytest.mark.parametrize("overlay", ["cpu", "cpu-keda", "cpu-hpa"])
def test_an_old_model_comes_out_of_the_old_image(overlay: str, tmp_path: Path) -> None:
    """As docs/KEEPING.md says: with a kustomization of one's own."""
    folders = {name: os.path.relpath(KUBERNETES / name, tmp_path.resolve()) for name in (overlay, "other-models")}
    own = {"kind": "Kustomization", "resources": [folders[overlay]], "components": [folders["other-models"]]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    documents = rendered(tmp_path)
    test_it_fits_the_schemas(documents)
    test_nothing_runs_as_root_or_writes_where_it_should_not(documents)
    pod = the("Deployment", documents)["spec"]["template"]["spec"]
    (init,), (container,), given = pod["initContainers"], pod["containers"], environment(documents)
    assert given.items() >= environment(rendered(overlay)).items()
    (name,) = json.loads(given["SDC_OTHER_MODELS"])
    *python, program = init["command"]
    assert python == ["python", "-c"] and f'"{given["SDC_MODELS_DIR"]}/{name}"' in program
    subprocess.run([sys.executable, "-c", program.replace("/models/", f"{tmp_path}/")], cwd=KUBERNETES.parents[1], check=True)
    assert (tmp_path / name / "sdc.json").read_bytes() == (BUNDLED_MODEL / "sdc.json").read_bytes()
    at = {each["name"]: each for each in container["volumeMounts"]}["models"]
    assert (at["mountPath"], at["readOnly"]) == (given["SDC_MODELS_DIR"], True)


def test_the_secret_is_asked_for_and_not_shipped(documents: tuple[Document, ...]) -> None:
    assert not [each for each in documents if each["kind"] == "Secret"]
    (container,) = the("Deployment", documents)["spec"]["template"]["spec"]["containers"]
    assert {"secretRef": {"name": "sdc"}} in container["envFrom"]
    secret = {f"SDC_{name.upper()}" for name in ("admin_key", "api_keys", "signing_keys")}
    assert secret <= {f"SDC_{name.upper()}" for name in Settings.model_fields}
    assert not set(environment(documents)) & secret
