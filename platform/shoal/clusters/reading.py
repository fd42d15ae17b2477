"""YAML files whose every value knows its line, so that what is wrong with one can be shown where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from shoal.errors import ConfigError
from shoal.job.checks import nearest

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C, where PyYAML was built with it: a definition of KubeRay's has a megabyte."""

Key = str | int
Place = tuple[Key, ...]
"""Where a value stands: the keys and positions that lead to it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or should be known."""

    line: int
    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file."""

    value: Any
    first: int
    """Its first line."""
    _lines: Mapping[Place, int]

    def line(self, place: Sequence[Key]) -> int:
        """The line of the value at `place`, or of the nearest one around it."""
        at = tuple(place)
        while at and at not in self._lines:
            at = at[:-1]
        return self._lines.get(at, self.first)

    def finding(self, place: Sequence[Key], reason: str) -> Finding:
        """`reason`, said of the value at `place`."""
        return Finding(self.line(place), shown(place), reason)


def shown(place: Sequence[Key]) -> str:
    """`available_node_types.head.node_config`, `spec.containers[0].image`."""
    text = ""
    for key in place:
        text += f"[{key}]" if isinstance(key, int) else f"{'.' if text else ''}{key}"
    return text


def read(path: Path) -> list[Document]:
    """The documents of a YAML file. Raises ConfigError, with line and reason, for what is no YAML, for a key that
    stands twice (YAML itself keeps the last one silently), and for a file that is empty or cannot be read."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        nodes = [node for node in yaml.compose_all(text, LOADER) if node is not None]
        values = [value for value in yaml.load_all(text, LOADER) if value is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        said = "; ".join(part for part in (error.context, error.problem) if part)
        if "\t" in (text.splitlines() or [""])[min(line, len(text.splitlines())) - 1]:
            said += " (indent with spaces, not with tabs)"
        raise ConfigError(f"{path}:{line}: this is no YAML: {said}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    if not nodes:
        raise ConfigError(f"{path} is empty")
    documents = []
    for node, value in zip(nodes, values, strict=True):
        lines = dict(_lines(node, (), path))
        documents.append(Document(value, node.start_mark.line + 1, lines))
    return documents


def _lines(node: yaml.Node, at: Place, path: Path) -> Iterator[tuple[Place, int]]:
    yield at, node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _lines(item, (*at, position), path)
    elif isinstance(node, yaml.MappingNode):
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        for value in merged:
            yield from _lines(value, at, path)
        seen: dict[str, int] = {}
        for key, value in node.value:
            if value in merged:
                continue
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise ConfigError(f"{path}:{line}: {shown((*at, name))} stands here and in line {seen[name]}; keep one")
            seen[name] = line
            yield from ((p, line if p == (*at, name) else n) for p, n in _lines(value, (*at, name), path))


def against(schema: Mapping[str, Any], document: Document, at: Place = ()) -> list[Finding]:
    """What JSON Schema `schema` finds in `document` (`at`: only the value there)."""
    value = document.value
    for key in at:
        value = value[key]
    errors = jsonschema.Draft7Validator(schema).iter_errors(value)
    found = [
        document.finding((*at, *error.absolute_path, *more), said) for error in errors for more, said in _say(error)
    ]
    return sorted(found, key=lambda finding: finding.line)


def _say(error: jsonschema.ValidationError) -> Iterable[tuple[Place, str]]:
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {}))
        patterns = error.schema.get("patternProperties", {})
        return [
            ((name,), f"there is no such setting here{nearest(str(name), known)}")
            for name in error.instance
            if name not in known and not patterns
        ]
    if error.validator == "required" and isinstance(error.instance, dict):
        missing = [name for name in error.validator_value if name not in error.instance]
        return [((), f"{', '.join(missing)} is missing here")]
    if error.validator == "type":
        wanted = error.validator_value
        kinds = wanted if isinstance(wanted, str) else " or ".join(wanted)
        return [((), f"{_short(error.instance)} is {_kind(error.instance)}, and must be of the type {kinds}")]
    return [((), error.message)]


def _kind(value: Any) -> str:
    names = {
        bool: "a boolean",
        str: "a string",
        int: "an integer",
        float: "a number",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), "empty" if value is None else f"a {type(value).__name__}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
