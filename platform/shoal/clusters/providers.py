"""What the clouds themselves say of a machine's configuration, by the models that their own libraries and Ray bring."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from shoal.job.checks import nearest
from shoal.ray_compat import azure_parameters

Said = tuple[tuple[str | int, ...], str]
"""(where below `node_config`, what is wrong there)."""

_OF_RAY = {"SubnetIds", "SecurityGroupIds", "NetworkInterfaces"}
"""Settings of an AWS machine that Ray resolves before it asks for one."""
_JSON = {"string": (str,), "boolean": (bool,), "integer": (int,), "number": (int, float)}


def machine(kind: str, node: dict[str, Any]) -> str | None:
    """The type of machine of a node type."""
    config = node.get("node_config", {})
    if kind == "azure":
        return config.get("azure_arm_parameters", {}).get("vmSize")
    return config.get({"aws": "InstanceType", "gcp": "machineType"}.get(kind, ""))


def market(kind: str, node: dict[str, Any]) -> str:
    """`spot` or `on-demand`."""
    config = node.get("node_config", {})
    scheduling = config.get("scheduling") or {}
    for one in scheduling if isinstance(scheduling, list) else [scheduling]:  # Ray's own examples have a list of one
        if one.get("provisioningModel") == "SPOT" or one.get("preemptible"):
            return "spot"
    azure = config.get("azure_arm_parameters", {}).get("priority") in ("Spot", "Low")
    aws = config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return "spot" if azure or aws else "on-demand"


def check(kind: str, node: dict[str, Any]) -> Iterator[Said]:
    """What is wrong with the `node_config` of a node type. Raises ImportError where the provider's library is not
    installed; of providers that have no model nothing is said."""
    config = node.get("node_config", {})
    if machine(kind, node) is None and kind in ("aws", "gcp", "azure"):
        names = {"aws": "InstanceType", "gcp": "machineType", "azure": "azure_arm_parameters.vmSize"}
        yield (), f"no machine is named: {names[kind]} is missing"
    elif kind == "aws":
        yield from _aws(config)
    elif kind == "gcp":
        yield from _gcp(config)
    elif kind == "azure":
        yield from _azure(config)


def _aws(config: dict[str, Any]) -> Iterator[Said]:
    """By the definition of EC2's RunInstances."""
    from botocore.validate import ParamValidator

    shape = _run_instances()
    asked = {name: value for name, value in config.items() if name not in _OF_RAY}
    for name in asked:
        if name not in shape.members:
            yield (name,), f"EC2 has no such setting{nearest(name, list(shape.members))}"
    known = {name: value for name, value in asked.items() if name in shape.members}
    report = ParamValidator().validate({**known, "MinCount": 1, "MaxCount": 1}, shape)
    for line in report.generate_report().splitlines():
        yield _aws_place(line), f"EC2 would refuse this: {line}"
    types = shape.members["InstanceType"].enum
    if config["InstanceType"] not in types:
        said = nearest(str(config["InstanceType"]), types)
        yield ("InstanceType",), f"this version of AWS's library knows no {config['InstanceType']}{said}"


@cache
def _run_instances() -> Any:
    import botocore.session

    model = botocore.session.get_session().get_service_model("ec2")
    return model.operation_model("RunInstances").input_shape


def _aws_place(line: str) -> tuple[str | int, ...]:
    """Where a line of botocore's report is about: it names `BlockDeviceMappings[0].Ebs`, without quotes."""
    named = re.search(r"(?:in|parameter) ((?:\w+(?:\[\d+\])?\.?)+)[:,]", line)
    parts = re.findall(r"\w+", named[1]) if named and named[1] != "input" else []
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _gcp(config: dict[str, Any]) -> Iterator[Said]:
    """By the definition of an instance in Compute Engine's own description."""
    yield from _described(config, {"$ref": "Instance"}, _compute_schemas(), ())


@cache
def _compute_schemas() -> dict[str, Any]:
    from googleapiclient.discovery_cache import get_static_doc

    document = get_static_doc("compute", "v1")
    assert document is not None, "google-api-python-client brings it"
    return json.loads(document)["schemas"]


def _described(value: Any, shape: dict[str, Any], schemas: dict[str, Any], at: tuple[str | int, ...]) -> Iterator[Said]:
    shape = schemas[shape["$ref"]] if "$ref" in shape else shape
    if at == ("scheduling",) and isinstance(value, list) and len(value) == 1:
        value = value[0]
    if "properties" in shape:
        if not isinstance(value, dict):
            yield at, f"{value!r} must be a mapping"
            return
        for name, item in value.items():
            if name not in shape["properties"]:
                yield (*at, name), f"Compute Engine has no such setting{nearest(name, list(shape['properties']))}"
            else:
                yield from _described(item, shape["properties"][name], schemas, (*at, name))
    elif shape.get("type") == "array":
        if not isinstance(value, list):
            yield at, f"{value!r} must be a list"
            return
        for position, item in enumerate(value):
            yield from _described(item, shape["items"], schemas, (*at, position))
    elif "enum" in shape and value not in shape["enum"]:
        yield at, f"{value!r} is not one of {', '.join(shape['enum'])}{nearest(str(value), shape['enum'])}"
    elif not isinstance(value, _kinds(shape)):
        yield at, f"{value!r} must be of the type {shape['type']}"


def _kinds(shape: dict[str, Any]) -> tuple[type, ...]:
    """What a value of this shape may be here. Google writes integers of 64 bits as text, and reads both."""
    wide = (int,) if shape.get("format") in ("int64", "uint64") else ()
    return (*_JSON.get(shape.get("type", ""), (object,)), *wide)


def _azure(config: dict[str, Any]) -> Iterator[Said]:
    """By the template by which Ray asks Azure for a machine."""
    known = azure_parameters()
    asked = config["azure_arm_parameters"]
    for name, value in asked.items():
        at = ("azure_arm_parameters", name)
        if name not in known:
            yield at, f"Ray's template for Azure has no such parameter{nearest(name, list(known))}"
        elif not isinstance(
            value, kinds := {"int": int, "bool": bool, "object": dict, "array": list}.get(known[name], str)
        ):
            yield at, f"{value!r} must be of the type {known[name]} ({kinds.__name__})"
    if asked.get("priority") not in (None, "Regular", "Low", "Spot"):
        yield ("azure_arm_parameters", "priority"), f"{asked['priority']!r} is not one of Regular, Low, Spot"
