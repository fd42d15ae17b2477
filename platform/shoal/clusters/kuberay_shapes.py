"""What a RayCluster and a RayJob of KubeRay (ray.io/v1, 1.5 to 1.7) may hold, as far as Shoal's manifests go.

Written down from KubeRay's API reference. A cluster's own definitions know more: `shoal cluster check --crd`.
Notation: a type; a mapping of settings (`!`: must be there); a list with the shape of its items; `each(shape)`: a
mapping with any keys; a tuple: one of these words.
"""

# ruff: noqa: PIE800 - several settings stand in one line, so that this can be read beside the reference

from __future__ import annotations

from typing import Any

TEXT, FLAG, COUNT, QUANTITY, ANY = "string", "boolean", "integer", ["string", "integer", "number"], None
"""Types. A quantity is a number, or one with a unit: `500m`, `16Gi`."""


def each(shape: Any) -> dict[str, Any]:
    """A mapping with any keys, each with a value of this shape."""
    return {"*": shape}


RESOURCES = {"limits": each(QUANTITY), "requests": each(QUANTITY), "claims": [ANY]}
FROM = {
    "secretKeyRef": {"name": TEXT, "key!": TEXT, "optional": FLAG},
    "configMapKeyRef": {"name": TEXT, "key!": TEXT, "optional": FLAG},
    "fieldRef": {"fieldPath!": TEXT, "apiVersion": TEXT},
    "resourceFieldRef": ANY,
    "fileKeyRef": ANY,
}
VARIABLE = {"name!": TEXT, "value": TEXT, "valueFrom": FROM}
TERM = {
    "matchExpressions": [
        {"key!": TEXT, "operator!": ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"), "values": [TEXT]}
    ],
    "matchFields": [ANY],
}
HANDLER = {"exec": {"command": [TEXT]}, "httpGet": ANY, "sleep": {"seconds!": COUNT}, "tcpSocket": ANY}
CONTAINER = {
    **{"name!": TEXT, "image": TEXT, "command": [TEXT], "args": [TEXT], "workingDir": TEXT},
    **{"env": [VARIABLE], "envFrom": [ANY], "resources": {**RESOURCES}, "imagePullPolicy": TEXT},
    "ports": [{"containerPort!": COUNT, "name": TEXT, "protocol": TEXT, "hostPort": COUNT, "hostIP": TEXT}],
    "lifecycle": {"preStop": HANDLER, "postStart": HANDLER, "stopSignal": TEXT},
    "volumeMounts": [
        {"name!": TEXT, "mountPath!": TEXT, "subPath": TEXT, "readOnly": FLAG, "subPathExpr": TEXT}
        | {"mountPropagation": TEXT, "recursiveReadOnly": TEXT}
    ],
    **dict.fromkeys(("securityContext", "livenessProbe", "readinessProbe", "startupProbe", "volumeDevices")),
    **{"stdin": FLAG, "tty": FLAG, "restartPolicy": TEXT, "resizePolicy": [ANY], "stdinOnce": FLAG},
    **{"terminationMessagePath": TEXT, "terminationMessagePolicy": TEXT, "restartPolicyRules": [ANY]},
}
POD = {
    "containers!": [CONTAINER],
    "initContainers": [CONTAINER],
    "volumes": [{"name!": TEXT, "*": ANY}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms!": [TERM]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight!": COUNT, "preference!": TERM}],
        },
        "podAffinity": ANY,
        "podAntiAffinity": ANY,
    },
    "tolerations": [
        {
            **{"key": TEXT, "value": TEXT, "tolerationSeconds": COUNT},
            **{"operator": ("Equal", "Exists", "Lt", "Gt")},
            **{"effect": ("NoSchedule", "PreferNoSchedule", "NoExecute")},
        }
    ],
    **{"terminationGracePeriodSeconds": COUNT, "nodeSelector": each(TEXT), "serviceAccountName": TEXT},
    **{"priorityClassName": TEXT, "runtimeClassName": TEXT, "schedulerName": TEXT, "restartPolicy": TEXT},
    **{"hostNetwork": FLAG, "imagePullSecrets": [ANY], "securityContext": ANY, "topologySpreadConstraints": [ANY]},
    **{"activeDeadlineSeconds": COUNT, "automountServiceAccountToken": FLAG, "dnsPolicy": TEXT, "dnsConfig": ANY},
    **{"enableServiceLinks": FLAG, "hostAliases": [ANY], "hostIPC": FLAG, "hostPID": FLAG, "hostname": TEXT},
    **{"nodeName": TEXT, "shareProcessNamespace": FLAG, "subdomain": TEXT, "preemptionPolicy": TEXT},
    **{"ephemeralContainers": [ANY], "overhead": ANY, "resourceClaims": [ANY], "readinessGates": [ANY]},
    **{"os": ANY, "priority": COUNT, "schedulingGates": [ANY], "setHostnameAsFQDN": FLAG, "hostUsers": FLAG},
    **{"serviceAccount": TEXT, "resources": RESOURCES, "hostnameOverride": TEXT},
}
TEMPLATE = {"metadata": ANY, "spec": POD}
GROUP = {"template!": TEMPLATE, "rayStartParams": each(TEXT), "labels": each(TEXT), "resources": each(TEXT)}
CLUSTER = {
    "rayVersion": TEXT,
    "suspend": FLAG,
    "managedBy": TEXT,
    "authOptions": {"mode": ("disabled", "token"), "secretName": TEXT, "enableK8sTokenAuth": FLAG},
    "enableInTreeAutoscaling": FLAG,
    "autoscalerOptions": {
        **{"version": ("v1", "v2"), "upscalingMode": ("Default", "Aggressive", "Conservative")},
        **{"idleTimeoutSeconds": COUNT, "image": TEXT, "imagePullPolicy": TEXT, "resources": RESOURCES},
        **{"env": [VARIABLE], "envFrom": [ANY], "securityContext": ANY, "volumeMounts": [ANY]},
        **{"command": [TEXT], "args": [TEXT]},
    },
    "gcsFaultToleranceOptions": {
        **{"redisAddress": TEXT, "externalStorageNamespace": TEXT, "backend": ("redis", "rocksdb"), "storage": ANY},
        **{"redisPassword": {"value": TEXT, "valueFrom": FROM}, "redisUsername": {"value": TEXT, "valueFrom": FROM}},
    },
    "headGroupSpec!": {
        **GROUP,
        **{"serviceType": TEXT, "enableIngress": FLAG, "headService": ANY, "ingressOptions": ANY},
    },
    "workerGroupSpecs": [
        {
            **GROUP,
            **{"groupName!": TEXT, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT, "suspend": FLAG},
            **{"idleTimeoutSeconds": COUNT, "numOfHosts": COUNT, "priority": COUNT, "scaleStrategy": ANY},
        }
    ],
    **{"headServiceAnnotations": each(TEXT), "networkPolicy": ANY, "tlsOptions": {"enabled": FLAG}},
    **{"historyServerOptions": ANY, "upgradeStrategy": {"type": ("Recreate", "None")}},
}
JOB = {
    **{"entrypoint": TEXT, "runtimeEnvYAML": TEXT, "rayClusterSpec": CLUSTER, "clusterSelector": each(TEXT)},
    **{"submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"), "jobId": TEXT},
    **{"shutdownAfterJobFinishes": FLAG, "ttlSecondsAfterFinished": COUNT, "activeDeadlineSeconds": COUNT},
    **{"backoffLimit": COUNT, "suspend": FLAG, "metadata": each(TEXT), "managedBy": TEXT, "entrypointResources": TEXT},
    **{"entrypointNumCpus": QUANTITY, "entrypointNumGpus": QUANTITY, "submitterConfig": {"backoffLimit": COUNT}},
    **{"submitterPodTemplate": TEMPLATE, "preRunningDeadlineSeconds": COUNT, "deletionStrategy": ANY},
}
KINDS = {"RayCluster": CLUSTER, "RayJob": JOB}


def schema_of(shape: Any) -> dict[str, Any]:
    """`shape` as JSON Schema."""
    if shape is ANY:
        return {}
    if isinstance(shape, str):
        return {"type": shape}
    if isinstance(shape, tuple):
        return {"enum": list(shape)}
    if isinstance(shape, list):
        return {"type": shape} if shape is QUANTITY else {"type": "array", "items": schema_of(shape[0])}
    named = {name.rstrip("!"): schema_of(item) for name, item in shape.items() if name != "*"}
    return {
        "type": "object",
        "properties": named,
        "required": [name.rstrip("!") for name in shape if name.endswith("!")],
        "additionalProperties": schema_of(shape["*"]) if "*" in shape else False,
    }
