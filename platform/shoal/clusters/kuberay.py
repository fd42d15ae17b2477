"""Manifests of KubeRay: what its definitions allow, and what a run on Shoal needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.clusters.groups import Found, Group, priced
from shoal.clusters.kuberay_shapes import KINDS, TEXT, each, schema_of
from shoal.clusters.reading import Document, Finding, Place, against, read
from shoal.errors import ConfigError
from shoal.job.checks import nearest
from shoal.ray_compat import version

GROUP = "ray.io"
MOST = (1 << 31) - 1
GPU = "nvidia.com/gpu"
HEALTH = "RAY_health_check_period_ms"


def is_one(documents: Sequence[Document]) -> bool:
    """Whether a file has objects of Kubernetes."""
    return all(isinstance(d.value, dict) and {"apiVersion", "kind"} & set(d.value) for d in documents)


def schemas(crds: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """JSON Schema by kind: that of the CustomResourceDefinitions in the files `crds`, for others what Shoal knows.

    Raises ConfigError for files without one.
    """
    known = {kind: _manifest(schema_of(shape)) for kind, shape in KINDS.items()}
    for path in crds:
        found = {kind: schema for document in read(path) for kind, schema in _defined(document)}
        if not found:
            raise ConfigError(
                f"{path} has no definition of a RayCluster or RayJob; get one from your cluster: kubectl get crd "
                f"rayclusters.ray.io rayjobs.ray.io --output yaml"
            )
        known.update(found)
    return known


def check(documents: Sequence[Document], known: Mapping[str, Mapping[str, Any]]) -> Found:
    """All checks of all documents of a file."""
    errors: list[Finding] = []
    notes: list[Finding] = []
    groups: list[Group] = []
    for document in documents:
        kind = _kind(document)
        if kind not in KINDS:
            errors += against(_ANY_OBJECT, document)
            if kind:
                said = f"KubeRay has no {kind} that is checked here{nearest(kind, list(KINDS))}"
                errors.append(document.finding(("kind",), said))
            continue
        wrong = against(known[kind], document)
        errors += wrong
        at: Place = ("spec",) if kind == "RayCluster" else ("spec", "rayClusterSpec")
        spec = document.value.get("spec") or {}
        spec = spec if kind == "RayCluster" else spec.get("rayClusterSpec")
        if wrong or not isinstance(spec, dict):
            continue  # a job for a cluster that is there already, or nothing that could be looked into
        errors += [document.finding((*at, *more), said) for more, said in _wrong(spec)]
        notes += [document.finding((*at, *more), said) for more, said in _weak(spec)]
        groups += _groups(spec)
    return Found(tuple(errors), tuple(notes), tuple(groups))


def _kind(document: Document) -> str:
    value = document.value
    if not isinstance(value, dict) or not str(value.get("apiVersion", "")).startswith(f"{GROUP}/"):
        return ""
    return str(value.get("kind", ""))


def _manifest(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = schema_of({"name": TEXT, "generateName": TEXT, "namespace": TEXT, "*": None})
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"enum": [f"{GROUP}/v1"]},
            "kind": {"type": "string"},
            "metadata": metadata,
            "spec": spec,
        },
        "additionalProperties": False,
    }


_ANY_OBJECT = schema_of(
    {"apiVersion!": TEXT, "kind!": TEXT, "metadata!": {"name!": TEXT, "labels": each(TEXT), "*": None}, "*": None}
)
"""What every other object of Kubernetes has."""


def _defined(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, its schema) of a CustomResourceDefinition, or of a list of them as `kubectl get` prints it."""
    value = document.value if isinstance(document.value, dict) else {}
    for one in value.get("items") or [value]:
        kind = str(one.get("spec", {}).get("names", {}).get("kind")) if isinstance(one, dict) else ""
        for version_ in one.get("spec", {}).get("versions", []) if kind in KINDS else []:
            if version_["name"] == "v1":
                schema = _strict(version_["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                yield kind, schema


def _strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema that refuses settings which Kubernetes would drop silently."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {
        key: _strict(item) for key, item in schema.items() if not key.startswith("x-kubernetes") and key != "format"
    }
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {name: _strict(item) for name, item in schema["properties"].items()}
        # What has a default is filled in by the cluster before it looks whether anything is missing.
        made["required"] = [n for n in schema.get("required", []) if "default" not in schema["properties"].get(n, {})]
        if not schema.get("x-kubernetes-preserve-unknown-fields") and schema.get("type") == "object":
            made.setdefault("additionalProperties", False)
    return made


def _wrong(spec: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    said = spec.get("rayVersion")
    if said is not None and said != version():
        yield ("rayVersion",), f"says {said}, but Shoal was tested with {version()}, which its image has"
    for place, group in _workers(spec):
        low, high = _bounds(group)
        if low > high:
            yield (*place, "maxReplicas"), f"{high} is less than minReplicas, {low}"
        if not low <= group.get("replicas", low) <= high:
            yield (*place, "replicas"), f"{group['replicas']} does not lie between minReplicas and maxReplicas"
    for place, group in [(("headGroupSpec",), spec["headGroupSpec"]), *_workers(spec)]:
        if not group["template"].get("spec", {}).get("containers"):
            yield (*place, "template"), "has no container"


def _weak(spec: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    if not spec.get("enableInTreeAutoscaling"):
        yield (), "without enableInTreeAutoscaling the cluster never grows or shrinks"
    if "gcsFaultToleranceOptions" not in spec:
        yield (), "without gcsFaultToleranceOptions every run ends with the head's pod, and goes on by `shoal resume`"
    names = {one.get("name") for one in _container(spec["headGroupSpec"]).get("env", [])}
    if HEALTH not in names:
        yield ("headGroupSpec",), f"without {HEALTH} it takes 13 to 16 s until a dead node is noticed"
    for place, group in _workers(spec):
        if "preStop" not in _container(group).get("lifecycle", {}):
            yield place, "without a preStop hook the workers of a pod that is taken back are lost instead of leaving"


def _groups(spec: dict[str, Any]) -> Iterator[Group]:
    head = spec["headGroupSpec"]
    yield priced("head", 1, 1, _resources(head), head.get("labels", {}))
    for _, group in _workers(spec):
        low, high = _bounds(group)
        yield priced(group["groupName"], low, high, _resources(group), group.get("labels", {}))


def _workers(spec: dict[str, Any]) -> list[tuple[Place, dict[str, Any]]]:
    return [(("workerGroupSpecs", i), group) for i, group in enumerate(spec.get("workerGroupSpecs") or [])]


def _bounds(group: dict[str, Any]) -> tuple[int, int]:
    """(fewest, most) pods of a group, with KubeRay's defaults."""
    return group.get("minReplicas", 0), group.get("maxReplicas", MOST)


def _container(group: dict[str, Any]) -> dict[str, Any]:
    """The container in which Ray runs: the first one."""
    return next(iter(group["template"].get("spec", {}).get("containers", [])), {})


def _resources(group: dict[str, Any]) -> dict[str, float]:
    """What Ray takes a pod to have."""
    limits = _container(group).get("resources", {}).get("limits", {})
    said = group.get("rayStartParams", {})
    cpus = said.get("num-cpus", limits.get("cpu", 0))
    gpus = said.get("num-gpus", limits.get(GPU, 0))
    return {"CPU": _number(cpus), "GPU": _number(gpus)}


def _number(quantity: Any) -> float:
    text = str(quantity)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
