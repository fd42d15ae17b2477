"""One file of a cluster, checked as far as this machine can: what is wrong, what is to be filled in, what it costs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shoal.clusters import kuberay, ray_up
from shoal.clusters.groups import Group
from shoal.clusters.reading import Document, Finding, read
from shoal.errors import ConfigError

BLANKS = (
    *("AMI_ID", "PROJECT_ID", "GPU_IMAGE", "SUBSCRIPTION_ID", "HEAD_ADDRESS", "WORKER_ADDRESS", "SSH_USER"),
    *("IMAGE_REGISTRY", "STORAGE_CLASS"),
)
"""Words in the files of cluster_configs/ that only their user can know."""

_BLANK = re.compile(rf"(?<![\w$.-])({'|'.join(BLANKS)})(?![\w-])")


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found out about a file."""

    path: Path
    kind: Literal["ray up", "KubeRay"]
    errors: tuple[Finding, ...]
    blanks: tuple[Finding, ...]
    """What is to be filled in."""
    notes: tuple[Finding, ...]
    """What works, but not as well as it could."""
    groups: tuple[Group, ...]
    skipped: tuple[str, ...]
    """Checks that could not be made here, with the reason."""


def check(path: Path, crds: Sequence[Path] = ()) -> Checked:
    """Check a cluster file. `crds`: files with KubeRay's own definitions, to check against those of a real cluster.

    Raises ConfigError for a file that is no YAML, or no cluster's.
    """
    documents = read(path)
    blanks = _once(finding for document in documents for finding in _blanks(document))
    if ray_up.is_one(documents):
        if crds:
            raise ConfigError(f"{path} is for `ray up`, which has nothing to do with --crd; leave it out")
        found = ray_up.check(documents[0], here=Path.cwd())
        return Checked(path, "ray up", found.errors, blanks, found.notes, found.groups, found.skipped)
    if kuberay.is_one(documents):
        found = kuberay.check(documents, kuberay.schemas(crds))
        return Checked(path, "KubeRay", found.errors, blanks, found.notes, found.groups, found.skipped)
    raise ConfigError(
        f"{path} is no cluster's: neither a configuration of `ray up` (it has no `provider`) nor a manifest of "
        f"Kubernetes (apiVersion, kind); there are examples in cluster_configs/"
    )


def _blanks(document: Document) -> Iterator[Finding]:
    for place, text in _texts(document.value, ()):
        for word in dict.fromkeys(_BLANK.findall(text)):
            yield document.finding(place, f"{word} is to be filled in; the first lines of the file say with what")


def _once(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """One for each line: what stands behind an anchor of YAML is found wherever it is used."""
    return tuple({finding.line: finding for finding in findings}.values())


def _texts(value: Any, at: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*at, key))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _texts(item, (*at, position))
