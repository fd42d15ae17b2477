"""Configurations of `ray up`: Ray's own checks, those of the providers' own models of their machines, and ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shoal.clusters import providers
from shoal.clusters.groups import Found, Group, priced, sizes_of
from shoal.clusters.reading import Document, Finding, against
from shoal.errors import ConfigError
from shoal.ray_compat import cluster_schema, filled_out
from shoal.tracking.prices import INSTANCE_LABEL, MARKET_LABEL

SPOT = "spot"
AUTOSCALES = "--autoscaling-config"
HEALTH = "RAY_health_check_period_ms"


def is_one(documents: Sequence[Document]) -> bool:
    """Whether a file is for `ray up`."""
    return len(documents) == 1 and isinstance(documents[0].value, dict) and "provider" in documents[0].value


def check(document: Document, here: Path) -> Found:
    """All checks. `here`: the folder from which `ray up` is run, which its paths start from."""
    errors = against(cluster_schema(), document)
    if errors:
        return Found(tuple(errors), (), ())  # the rest would stumble over the same
    try:
        whole = filled_out(document.value)
    except ConfigError as error:
        return Found((document.finding(_place_of(document, str(error)), str(error)),), (), ())
    kind = str(document.value["provider"]["type"])
    types: dict[str, Any] = whole["available_node_types"] if kind != "local" else {}
    skipped, wrong = [], list(_files(document, here))
    for name, node in types.items():
        at = ("available_node_types", name)
        try:
            wrong += [document.finding((*at, "node_config", *more), said) for more, said in providers.check(kind, node)]
        except ImportError as error:
            skipped = [f"what {kind} itself says of the machines: {error}; pip install 'shoal[{kind}]'"]
        wrong += [document.finding((*at, *more), said) for more, said in _labels(kind, node)]
    notes = _notes(document, whole) if kind != "local" else []
    return Found(tuple(wrong), tuple(notes), tuple(_groups(types, whole)), tuple(skipped))


def _groups(types: dict[str, Any], whole: dict[str, Any]) -> Iterator[Group]:
    for name, node in types.items():
        head = name == whole["head_node_type"]
        low, high = (1, 1) if head else (node["min_workers"], min(node["max_workers"], whole["max_workers"]))
        yield priced(name, low, high, node.get("resources", {}), node.get("labels", {}))


def _files(document: Document, here: Path) -> Iterator[Finding]:
    for there, local in (document.value.get("file_mounts") or {}).items():
        if not (here / Path(str(local)).expanduser()).exists():
            yield document.finding(("file_mounts", there), f"{local} is not in {here}; run `ray up` from a checkout")


def _labels(kind: str, node: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Labels that say something else than the node's own configuration, by which money would be counted wrongly."""
    labels = node.get("labels", {})
    machine, market = providers.machine(kind, node), providers.market(kind, node)
    said = labels.get(INSTANCE_LABEL)
    if said is not None and machine is not None and said != machine:
        yield ("labels", INSTANCE_LABEL), f"says {said}, but the machine is {machine}, and its price would be wrong"
    said = labels.get(MARKET_LABEL)
    if said is not None and said != market:
        yield ("labels", MARKET_LABEL), f"says {said}, but the machine is {market}, and its price would be wrong"
    sizes = sizes_of(labels)
    for name, has in zip(("CPU", "GPU"), sizes or (), strict=bool(sizes)):
        asked = node.get("resources", {}).get(name, 0)
        if asked > has:
            yield ("resources", name), f"{asked} are more than the {has:g} of {machine}; Ray would place too much on it"


def _notes(document: Document, whole: dict[str, Any]) -> list[Finding]:
    notes = []
    start = "\n".join(whole.get("head_start_ray_commands", []))
    if AUTOSCALES not in start:
        notes.append(
            document.finding(("head_start_ray_commands",), f"without {AUTOSCALES} the cluster never grows or shrinks")
        )
    if HEALTH not in start and "health_check" not in start:
        notes.append(
            document.finding(
                ("head_start_ray_commands",), f"without {HEALTH} it takes 13 to 16 s until a dead node is noticed"
            )
        )
    if not any("watch-node" in command for command in whole.get("worker_start_ray_commands", [])):
        notes.append(
            document.finding(
                ("worker_start_ray_commands",),
                "without `shoal watch-node` nobody hears that the provider will take a node back, and its workers are "
                "lost instead of leaving",
            )
        )
    return notes


def _place_of(document: Document, said: str) -> tuple[str, ...]:
    """Where in the file Ray's words are about, by the name of a setting in them."""
    named = {key: said.find(f"`{key}`") for key in document.value}
    first = min((at for at in named.values() if at >= 0), default=-1)
    return next(((key,) for key, at in named.items() if at == first >= 0), ())
