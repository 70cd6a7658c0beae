"""The RayJob, as far as it can be checked without a cluster: its pods against Kubernetes' own schemas, the rest against the names of
KubeRay's API (ray.io/v1), its command against ours."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from service.bulk.command import SOME_FAILED
from service.cli import app
from tests.deploy.manifests import KUBERNETES, read

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "ray"
CLAIM, JOB = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
KNOWN = {
    "RayJobSpec": """activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus entrypointNumGpus
        entrypointResources jobId managedBy metadata rayClusterSpec runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig
        submitterPodTemplate suspend ttlSecondsAfterFinished""",
    "RayClusterSpec": """authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec headServiceAnnotations
        managedBy rayVersion suspend workerGroupSpecs""",
    "HeadGroupSpec": "enableIngress headService rayStartParams serviceType template",
    "WorkerGroupSpec": """groupName idleTimeoutSeconds maxReplicas minReplicas numOfHosts rayStartParams replicas scaleStrategy suspend
        template""",
    "AutoscalerOptions": """env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext upscalingMode version
        volumeMounts""",
}
"""names of fields, by type"""


def test_every_field_is_one_of_the_api() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    of_type = {
        "RayJobSpec": [JOB["spec"]],
        "RayClusterSpec": [CLUSTER],
        "HeadGroupSpec": GROUPS[:1],
        "WorkerGroupSpec": GROUPS[1:],
        "AutoscalerOptions": [CLUSTER["autoscalerOptions"]],
    }
    for kind, found in of_type.items():
        for each in found:
            assert set(each) <= set(KNOWN[kind].split()), kind
    assert CLUSTER["authOptions"] == {"mode": "token"}
    for group in GROUPS:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("template", [group["template"] for group in GROUPS], ids=["head", "workers"])
def test_pods_and_the_claim_fit_the_schemas_of_kubernetes(template: dict[str, Any]) -> None:
    pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
    for resource in (pods, CLAIM):
        kubernetes_validate.validate(resource, "1.32", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**pods, "template": {**template, "spec": {"container": []}}}, "1.32", strict=True)


def test_the_service_does_not_take_its_pods_for_its_own() -> None:
    service = read(KUBERNETES / "base" / "service.yaml")["spec"]["selector"]
    for labels in (CLAIM["metadata"]["labels"], JOB["metadata"]["labels"], *(group["template"]["metadata"]["labels"] for group in GROUPS)):
        assert labels == {"app.kubernetes.io/name": "sdc-bulk"}
        assert not service.items() <= labels.items()


def test_nobody_is_root_and_secrets_are_not_written_down() -> None:
    for group in GROUPS:
        spec = group["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        (container,) = spec["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "sdc-store"}}]
        assert not [each for each in container["env"] if re.search("KEY|SECRET|TOKEN", each["name"])]


def test_the_command_is_one_that_there_is() -> None:
    line, _, otherwise = JOB["spec"]["entrypoint"].partition(" || ")
    assert otherwise == f"test $? -eq {SOME_FAILED}"
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("sdc", "bulk")
    options = {name for parameter in get_command(app).commands["bulk"].params for name in parameter.opts}  # type: ignore[attr-defined]
    given = {each: following for each, following in zip(arguments, [*arguments[1:], ""], strict=True) if each.startswith("--")}
    assert set(given) <= options
    assert "Usage" in CliRunner().invoke(app, ["bulk", "--help"]).output
    workers = GROUPS[1]
    assert int(given["--workers"]) == workers["maxReplicas"]
    assert given["--worker-cpus"] == workers["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    mounts = GROUPS[0]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert Path(given["--manifest"]).parent == Path(mounts[0]["mountPath"])


def test_one_ray_everywhere() -> None:
    version = CLUSTER["rayVersion"]
    assert f"ray[data,default]=={version}" in (FOLDER / "Dockerfile").read_text()
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ray"]
    assert any(line.startswith(f"ray[data]>={version.rpartition('.')[0]},") for line in extra)


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run([Path(sys.executable).parent / "hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
