# SPDX-License-Identifier: Apache-2.0
"""The jobs of scripts/kubernetes: fields and rules of the training operator, flags of ours, and what launch.sh starts.

Not a cluster: nothing here schedules a pod. The fields are those that version 1.9.0 of the operator defines for
PyTorchJob and MPIJob of kubeflow.org/v1, and those of a pod that the jobs use.
"""
from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from recognition.config.cli import parse_args

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scripts" / "kubernetes"
JOBS = sorted(FOLDER.glob("*.yaml"))
CONTAINER = {"name": str, "image": str, "workingDir": str, "command": [str], "args": [str],
             "env": [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}],
             "resources": {"limits": {"*": (int, str)}, "requests": {"*": (int, str)}},
             "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}]}
VOLUME = {"name": str, "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
          "emptyDir": {"medium": str, "sizeLimit": str}}
REPLICA = {"replicas": int, "restartPolicy": str,
           "template": {"metadata": {"*": {"*": str}}, "spec": {"containers": [CONTAINER], "volumes": [VOLUME]}}}
RUN_POLICY = {"activeDeadlineSeconds": int, "backoffLimit": int, "cleanPodPolicy": str, "suspend": bool,
              "ttlSecondsAfterFinished": int}
SPECS: dict[str, Any] = {
    "PyTorchJob": {"nprocPerNode": str, "runPolicy": RUN_POLICY, "pytorchReplicaSpecs": {"*": REPLICA},
                   "elasticPolicy": {"minReplicas": int, "maxReplicas": int, "maxRestarts": int, "rdzvBackend": str,
                                     "rdzvHost": str, "rdzvId": str, "rdzvPort": int}},
    "MPIJob": {"slotsPerWorker": int, "mainContainer": str, "runPolicy": RUN_POLICY,
               "mpiReplicaSpecs": {"*": REPLICA}},
}
OF_KIND = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}
REPLICAS = {"PyTorchJob": ("pytorchReplicaSpecs", "pytorch", ("Master", "Worker")),
            "MPIJob": ("mpiReplicaSpecs", "mpi", ("Launcher", "Worker"))}


def wrong(value: Any, schema: Any, where: str) -> list[str]:
    """What a value has that its schema does not."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{where}: {value!r}, expected fields"]
        known = {key: schema.get(key, schema.get("*")) for key in value}
        return [text for key, kind in known.items() for text in
                ([f"{where}: no field {key}"] if kind is None else wrong(value[key], kind, f"{where}.{key}"))]
    if isinstance(schema, list):
        return [text for item in value for text in wrong(item, schema[0], where)]
    kinds = schema if isinstance(schema, tuple) else (schema,)
    return [] if type(value) in kinds else [f"{where}: {value!r}, expected {kinds}"]


def replicas_of(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"][REPLICAS[job["kind"]][0]]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_has_the_operators_fields_and_keeps_its_rules(path: Path) -> None:
    job = yaml.safe_load(path.read_text())
    _, container, roles = REPLICAS[job["kind"]]
    assert job["apiVersion"] == "kubeflow.org/v1" and set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert not wrong(job["spec"], SPECS[job["kind"]], "spec")
    assert set(replicas_of(job)) <= set(roles) and "Worker" in replicas_of(job)
    for role, replica in replicas_of(job).items():
        pod = replica["template"]["spec"]
        assert replica["replicas"] == 1 if role in ("Master", "Launcher") else replica["replicas"] >= 1
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        assert container in [one["name"] for one in pod["containers"] if one["image"]]
        mounts = {mount["name"] for one in pod["containers"] for mount in one.get("volumeMounts", ())}
        assert mounts == {volume["name"] for volume in pod.get("volumes", ())}
    if elastic := job["spec"].get("elasticPolicy"):
        assert elastic["minReplicas"] <= replicas_of(job)["Worker"]["replicas"] <= elastic["maxReplicas"]
    assert job["spec"]["runPolicy"]["cleanPodPolicy"] in ("All", "Running", "None")


def against(value: Any, schema: dict[str, Any], where: str) -> list[str]:
    """What a value has that a schema of Kubernetes (OpenAPI 3) does not, or lacks."""
    kind, properties, more = schema.get("type"), schema.get("properties", {}), schema.get("additionalProperties")
    if schema.get("x-kubernetes-int-or-string"):
        return [] if isinstance(value, (int, str)) else [f"{where}: {value!r}"]
    if not isinstance(value, OF_KIND[kind]):
        return [f"{where}: {value!r}, expected {kind}"]
    if kind == "array":
        return [text for item in value for text in against(item, schema["items"], where)]
    if kind != "object" or not (properties or more):
        return [] if value in schema.get("enum", [value]) else [f"{where}: {value!r}, expected {schema['enum']}"]
    missing = [f"{where}: no {name}" for name in schema.get("required", ()) if name not in value]
    found = {name: properties.get(name, more) for name in value}
    return missing + [text for name, one in found.items() for text in (
        against(value[name], one, f"{where}.{name}") if one else [f"{where}: no field {name}"])]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_fits_the_operators_own_schema(path: Path) -> None:
    """OPERATOR_CRDS names the folder ``manifests/base/crds`` of the operator's source, which is not kept here."""
    if not (folder := os.environ.get("OPERATOR_CRDS")):
        pytest.skip("OPERATOR_CRDS names no folder with the operator's schemas")
    job = yaml.safe_load(path.read_text())
    crd = yaml.safe_load(Path(folder, f"kubeflow.org_{job['kind'].lower()}s.yaml").read_text())
    (version,) = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    job["metadata"] = {}  # every object of Kubernetes has it
    assert against(job, version["schema"]["openAPIV3Schema"], job["kind"]) == []
    job["imagine"] = 1
    del replicas_of(job)["Worker"]["template"]["spec"]["containers"][0]["name"]
    assert 2 <= len(against(job, version["schema"]["openAPIV3Schema"], job["kind"])) <= 3  # the Master may be the same


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_jobs_command_is_there_and_its_flags_are_ours(path: Path) -> None:
    job = yaml.safe_load(path.read_text())
    first = next(iter(replicas_of(job).values()))["template"]["spec"]["containers"][0]
    program, *rest = first["command"]
    assert rest == ["train_parall.py"] if program == ".venv/bin/torchrun" else (ROOT / program).stat().st_mode & 0o111
    config = parse_args("train_parall", first["args"], environ={})
    assert config.resume == "auto" and config.models_root == "/models"


def test_the_launchers_pod_starts_the_run_on_the_pods_of_the_host_file(tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("faces-worker-0 slots=8\nfaces-worker-1 slots=8\n\n")
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    python = str(tmp_path / "python")
    done = subprocess.run([FOLDER / "launch.sh", "--network", "a b"], capture_output=True, text=True, cwd=ROOT,
                          env={"PATH": "/usr/bin:/bin", "HOSTFILE": str(tmp_path / "hostfile"), "PYTHON": python,
                               "POD_IP": "10.0.0.9"})
    assert done.stdout.splitlines() == [
        "-m", "recognition.launch", "-np", "16", "--hosts", "faces-worker-0:8,faces-worker-1:8", "--address",
        "10.0.0.9", "--ssh", "scripts/kubernetes/exec_host.sh", "--restarts", "3", "--", python, "train_parall.py",
        "--network", "a b"], done.stderr


def test_a_line_goes_to_a_pod_with_its_input(tmp_path: Path) -> None:
    (tmp_path / "kubectl").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\ncat\n')
    (tmp_path / "kubectl").chmod(0o755)
    done = subprocess.run([FOLDER / "exec_host.sh", "pod", "cd /a && exec b"], capture_output=True, text=True,
                          input="beat", env={"PATH": "/usr/bin:/bin", "KUBECTL": str(tmp_path / "kubectl")})
    assert done.stdout.splitlines() == ["exec", "-i", "pod", "--container", "mpi", "--", "/bin/sh", "-c",
                                        "cd /a && exec b", "beat"]
