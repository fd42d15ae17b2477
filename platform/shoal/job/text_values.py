"""Values of a job as text, and back, guided by the fields' type annotations.

Plainly: `3e-4`, `true`, `none`, `gpt`, `0.9,0.95`, `accelerator:1,disk:2` (pairs). Where that would be ambiguous, and
for whatever else, Python literals: `'none'`, `("a,b", "c")`, `{"layers": 2}` (JSON will do, too). A dataclass that the
annotation names is written as it is made: `Crop(padding=4)`, or only `Crop`; several with commas between.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from shoal.errors import ConfigError
from shoal.job.checks import nearest

_NONE = ("none", "null")
_BOOL = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_SEQUENCES = (tuple, list, set, frozenset)
_MAPPINGS = (dict, Mapping)
_DIGITS = re.compile(r"\s*[+-]?[\d_]+\s*")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def parse(text: str, annotation: Any, name: str) -> Any:
    """`text` as a value of the type `annotation`; ConfigError says the field `name`, the value, what is expected."""
    try:
        return _parse(text, annotation)
    except _Refused as refused:
        raise ConfigError(f"{name}={text!r} is not {_expected(annotation)}{refused.hint}") from None
    except ConfigError as error:  # of a dataclass in it
        raise ConfigError(f"{name}={text!r} is refused: {error}") from None


def format_value(value: Any, annotation: Any = Any) -> str:
    """`value` as text that `parse` turns back into it; where there is no such text, as text for people.

    The text is the same in every process: no addresses, no order of hashing.
    """
    plain = _format(value)
    for text in (plain, repr(value)):
        try:
            if repr(_parse(text, annotation)) == repr(value):
                return text
        except (_Refused, ConfigError):
            continue
    return plain


def made_as(value: Any) -> str:
    """A dataclass's value by its name and those of its fields that have no default: `Rex`, `Scaled(by=0.3, of=Rex())`.

    With its other fields it is the value again.
    """
    needed = [f.name for f in dataclasses.fields(value) if f.init and _has_no_default(f)]
    said = ", ".join(f"{name}={getattr(value, name)!r}" for name in needed)
    return f"{type(value).__name__}({said})" if said else type(value).__name__


def is_choice(annotation: Any) -> bool:
    """Whether several types may stand there."""
    return _split(annotation)[0] is Union


class _Refused(Exception):
    """The text, or the literal in it, is not of the type; `hint` may name what was meant."""

    def __init__(self, hint: str = "") -> None:
        self.hint = hint


def _parse(text: str, annotation: Any) -> Any:
    origin, args = _split(annotation)
    if origin is Union:
        if float in args and not _DIGITS.fullmatch(text):
            args = tuple(arm for arm in args if arm is not int)  # 1e6 is a whole number only where no float is meant
        return _first(text, args, _parse)
    if origin is Literal:
        return _choose(text, {str(v): v for v in args})
    if origin in _SEQUENCES:
        return _parse_sequence(text.strip(), annotation)
    if origin in _MAPPINGS:
        return _convert(_literal(text), annotation)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return _choose(text, {str(m.value): m for m in origin} | dict(origin.__members__))
    if dataclasses.is_dataclass(origin):
        return _convert(_expression(text, annotation), annotation)
    if origin not in _READERS:
        raise _Refused("; it can only be set in the recipe")
    return _READERS[origin](text)


def _parse_sequence(text: str, annotation: Any) -> Any:
    if _dataclasses(annotation):
        whole = text if text[:1] in ("(", "[") or not text else f"({text.rstrip(',')},)"
        return _convert(_expression(whole or "()", annotation), annotation)
    if text[:1] in ("(", "[", "{"):
        return _convert(_literal(text), annotation)
    parts = [part.strip() for part in text.split(",")] if text else []
    kind, _ = _split(annotation)
    return kind(
        # A pair inside a list is written name:amount.
        _parse(part.replace(":", ",") if _split(of)[0] in _SEQUENCES else part, of)
        for part, of in zip(parts, _item_types(annotation, len(parts)), strict=True)
    )


def _convert(value: Any, annotation: Any) -> Any:
    """A Python literal as a value of the type `annotation`."""
    origin, args = _split(annotation)
    if origin in (Any, object):
        return value
    if origin is Union:
        return _first(value, args, _convert)
    if origin in _SEQUENCES and isinstance(value, _SEQUENCES):
        types_ = _item_types(annotation, len(value))
        return origin(_convert(item, of) for item, of in zip(value, types_, strict=True))
    if origin in _MAPPINGS and isinstance(value, dict):
        of = args[1] if args else Any
        return {key: _convert(item, of) for key, item in value.items()}
    if origin is float and type(value) in (int, float):
        return float(value)
    if origin is Literal and any(value == v and type(value) is type(v) for v in args):
        return value
    if type(value) is origin:
        return value
    raise _Refused


def _dataclasses(annotation: Any) -> dict[str, Any]:
    """The dataclasses that the annotation names, by their own names."""
    origin, args = _split(annotation)
    found = {origin.__name__: origin} if isinstance(origin, type) and dataclasses.is_dataclass(origin) else {}
    for arm in args:
        found |= _dataclasses(arm)
    return found


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """(kind of type, its arguments); both ways to write a union are one kind, and annotations are looked through."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _split(args[0])
    if origin is types.UnionType:
        return Union, args
    return (annotation if origin is None else origin), args


def _first(value: Any, arms: Sequence[Any], read: Callable[[Any, Any], Any]) -> Any:
    """`value` as the narrowest of the types that it can be: every text is a str, and every whole number a float."""
    width = {type(None): 0, bool: 1, int: 2, float: 3, str: 5}
    hints = []
    for arm in sorted(arms, key=lambda arm: width.get(arm, 4)):
        try:
            return read(value, arm)
        except _Refused as refused:
            hints.append(refused.hint)
    raise _Refused(max(hints, key=len))


def _item_types(annotation: Any, count: int) -> Sequence[Any]:
    kind, args = _split(annotation)
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(args) != count:
            raise _Refused
        return args
    return [args[0] if args else Any] * count


def _choose(text: str, choices: dict[str, Any]) -> Any:
    if text in choices:
        return choices[text]
    raise _Refused(nearest(text, list(choices)))


def _literal(text: str) -> Any:
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise _Refused


def _expression(text: str, annotation: Any) -> Any:
    """A Python literal in which dataclasses that `annotation` names may stand: `Name(field=literal, …)` or `Name`."""
    try:
        return _evaluated(ast.parse(text.strip(), mode="eval").body, _dataclasses(annotation))
    except ConfigError:  # a ValueError, too, but one that says what it is about
        raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise _Refused from None


def _evaluated(node: ast.expr, kinds: Mapping[str, Any]) -> Any:
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_evaluated(item, kinds) for item in node.elts)
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(call.func, ast.Name):
        return ast.literal_eval(node)
    name = call.func.id
    if name not in kinds:
        raise _Refused(nearest(name, list(kinds)))
    if call.args or any(word.arg is None for word in call.keywords):
        raise _Refused(f"; name the fields: {name}(field=value)")
    return _made(kinds[name], {str(word.arg): word.value for word in call.keywords})


def _made(kind: Any, given: Mapping[str, ast.expr]) -> Any:
    """A value of the dataclass `kind`. ConfigError if it refuses its fields' values."""
    name, fields = kind.__name__, {f.name: f for f in dataclasses.fields(kind) if f.init}
    unknown = [word for word in given if word not in fields]
    if unknown:
        raise _Refused(f"; {name} has {', '.join(fields)}, and no {unknown[0]}{nearest(unknown[0], list(fields))}")
    missing = [f.name for f in fields.values() if _has_no_default(f) and f.name not in given]
    if missing:
        raise _Refused(f"; {name} needs {' and '.join(missing)}")
    types_, values = _types_of(kind), {}
    for word, node in given.items():
        of = types_.get(word, Any)
        try:
            values[word] = _convert(_evaluated(node, _dataclasses(of)), of)
        except ConfigError:
            raise
        except (_Refused, ValueError):
            raise _Refused(f"; {name}.{word}={ast.unparse(node)} is not {_expected(of)}") from None
    try:
        return kind(**values)
    except ConfigError:
        raise
    except Exception as error:  # the user's own dataclass may raise anything
        raise ConfigError(f"{name}: {type(error).__name__}: {error}") from error


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _types_of(kind: Any) -> dict[str, Any]:
    """field -> type; nothing where an annotation names what cannot be found."""
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception:  # noqa: BLE001 - evaluates what the user wrote, which may raise anything
        return {}


def _read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = Decimal(text)  # 1e6 is a whole number, too
    except InvalidOperation:
        raise _Refused from None
    if not number.is_finite() or number.adjusted() > 30 or number != int(number):
        raise _Refused
    return int(number)


def _read_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _Refused from None


def _read_bool(text: str) -> bool:
    return bool(_choose(text.lower(), dict(_BOOL)))


def _read_none(text: str) -> None:
    if text.lower() not in _NONE:
        raise _Refused


def _read_str(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        try:
            return str(_literal(text))
        except _Refused:
            pass
    return text


def _read_any(text: str) -> Any:
    for read in (_read_none, _literal, _READERS[bool]):
        try:
            return read(text)
        except _Refused:
            continue
    return text


_READERS: dict[Any, Callable[[str], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    type(None): _read_none,
    Path: Path,
    Any: _read_any,
    object: _read_any,
}

_DESCRIPTIONS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "none",
    Path: "a path",
    Any: "a Python literal",
}


def _expected(annotation: Any) -> str:
    """The type in words."""
    origin, args = _split(annotation)
    if origin is Union:
        return " or ".join(_expected(arm) for arm in args)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return f"one of {', '.join(origin.__members__)}"
    if origin is tuple and args and args[-1] is not Ellipsis:
        return f"{len(args)} values with commas between ({', '.join(map(_expected, args))})"
    if origin in _SEQUENCES:
        return f"values with commas between ({_expected(args[0])} each)" if args else "values with commas between"
    if origin in _MAPPINGS:
        return 'a dictionary such as {"layers": 2}'
    if dataclasses.is_dataclass(origin):
        return f"{getattr(origin, '__name__', origin)}(…)"
    return _DESCRIPTIONS.get(origin) or f"a {getattr(origin, '__name__', origin)}"


def _format(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (tuple, list)) and any(map(is_made, value)):
        return ", ".join(map(_format, value))
    if isinstance(value, (tuple, list)):
        rows = [item if isinstance(item, (tuple, list)) else [item] for item in value]
        return ",".join(":".join(_format(part) for part in row) for row in rows)
    if isinstance(value, (set, frozenset)):
        return ",".join(sorted(_format(item) for item in value))
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return str(value.__qualname__)
    if not isinstance(value, type) and callable(getattr(value, "to_dict", None)):
        return json.dumps(value.to_dict(), sort_keys=True, default=str)
    if isinstance(value, (str, Path)):
        return str(value)
    if is_made(value):
        # What is None by default and None now is left out: a field that comes later changes no text of today.
        said = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value) if f.init}
        inside = ", ".join(f"{name}={now!r}" for name, (now, usual) in said.items() if (now, usual) != (None, None))
        return _ADDRESS.sub("", f"{type(value).__name__}({inside})")
    return _ADDRESS.sub("", repr(value))


def is_made(value: Any) -> bool:
    """Whether `value` is a dataclass's value (and not the class)."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
