"""What must not creep in: size, cycles, wrong directions, private names, hidden configuration, machines' paths."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from shoal import environment, errors

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "platform" / "shoal"
CODE = ("platform", "jobs", "tuning", "benchmarks", "tests")

FILE_LINES = 400
FUNCTION_LINES = 60
INIT_PARAMETERS = 8

PURE = (
    "shoal.errors",
    "shoal.environment",
    "shoal.job",
    "shoal.labels",
    "shoal.capacity",
    "shoal.membership",
    "shoal.simulate",
    "shoal.digests",
    "shoal.positions",
    "shoal.data.order",
    "shoal.audit.chain",
    "shoal.audit.epochs",
    "shoal.optim.schedules",
    "shoal.optim.range_test",
    "shoal.tuning.space",
    "shoal.tuning.spec",
    "shoal.tuning.trials",
    "shoal.tuning.sweeping",
    "shoal.pool.division",
    "shoal.optim.batch_rules",
    "shoal.optim.noise",
)
"""Import neither Ray nor torch."""

MAY_IMPORT = {
    # room: rooms (or single modules of rooms) that it may import, anywhere in its code.
    "errors": "",
    "environment": "",
    "digests": "",
    "positions": "",
    "locks": "",
    "redaction": "",
    "logs": "",
    "labels": "errors",
    "run_folder": "errors locks",
    "job": "errors labels positions run_folder",
    "capacity": "labels",
    "membership": "errors digests positions optim.noise",
    "simulate": "errors membership",
    "tasks": "errors job",
    "optim": "errors job",
    "ray_compat": "errors",
    "deepspeed_compat": "errors",
    "orphans": "ray_compat",
    "data": "errors positions job capacity ray_compat orphans",
    "state": "errors job membership tasks",
    "engines": "errors job optim state tasks deepspeed_compat",
    "tracking": "errors job locks run_folder redaction",
    "audit": "errors digests positions job run_folder data tracking.ledger",
    "worker": "__version__ errors digests job capacity membership optim data state engines tasks ray_compat orphans "
    "logs tracking.energy",
    "coordinator": "errors redaction positions job capacity membership data state tasks tracking worker ray_compat "
    "run_folder pool.division pool.spec orphans optim.range_test optim.noise logs",
    "pool": "errors labels job data worker coordinator ray_compat launch.cluster",
    "notices": "errors ray_compat launch.cluster",
    "tuning": "errors job run_folder ray_compat data.sources state.store tracking coordinator.status launch cli.text "
    "pool",
    "launch": "errors redaction positions job data state tasks tracking coordinator audit pool ray_compat run_folder "
    "cli.display optim.range_test logs",
    "clusters": "errors job ray_compat tracking.prices",
    "submit": "errors job ray_compat launch.cluster launch.prepare tuning.recipe",
    "cli": "errors redaction environment __version__ run_folder positions job data tasks tracking audit "
    "coordinator.status launch optim.schedules optim.batch_rules optim.range_test tuning notices logs submit clusters "
    "simulate",
    "__init__": "job tasks launch tuning",
    "__main__": "cli",
}

NEVER = {"membership": ("ray", "torch"), "engines": ("ray",), "state": ("ray",), "optim": ("ray",), "tasks": ("ray",)}
"""Packages that a room may not even import inside a function."""

COMPAT = {"ray": "ray_compat.py", "deepspeed": "deepspeed_compat.py"}


def python_files(*folders: str) -> list[Path]:
    """All Python files below these folders of the checkout."""
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "platform").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(node: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    """All nodes below `node` but those that only type checkers see, and, if asked, those that run later."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if not inside_functions and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield child
        yield from statements(child, inside_functions=inside_functions)


@cache
def imported(path: Path, *, inside_functions: bool = True) -> frozenset[str]:
    """Dotted names that a file imports; of `from a import b`, `a.b`."""
    found: set[str] = set()
    for node in statements(tree(path), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{named(path)}:{node.lineno}: relative import; write the whole name"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def run_python(code: str, *flags: str) -> str:
    environment_of_child = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    child = subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, env=environment_of_child, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


# Sizes -------------------------------------------------------------------------------------------------------------


def test_files_are_short() -> None:
    long = {named(p): n for p in python_files(*CODE) if (n := len(p.read_text().splitlines())) > FILE_LINES}
    assert not long, f"files of more than {FILE_LINES} lines: {long}; split them"


def test_functions_are_short() -> None:
    long = {
        f"{named(p)}:{node.name}": lines
        for p in python_files(*CODE)
        for node in ast.walk(tree(p))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    }
    assert not long, f"functions of more than {FUNCTION_LINES} lines: {long}; split them"


def test_constructors_are_small() -> None:
    large = {
        f"{named(p)}:{node.name}": count
        for p in python_files("platform")
        for node in ast.walk(tree(p))
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        if (count := len(method.args.posonlyargs + method.args.args + method.args.kwonlyargs) - 1) > INIT_PARAMETERS
    }
    assert not large, f"constructors with more than {INIT_PARAMETERS} parameters: {large}; pass one configuration"


# Imports -----------------------------------------------------------------------------------------------------------


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it shadows the standard library's module `platform`"


def test_every_room_has_its_line() -> None:
    rooms = {p.stem if p.is_file() else p.name for p in SOURCE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))}
    assert rooms == set(MAY_IMPORT), "say in MAY_IMPORT what the new room may import"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room: str) -> None:
    allowed = [*MAY_IMPORT[room].split(), room]
    for path in python_files("platform"):
        inside = path.relative_to(SOURCE)
        if (inside.parts[0] if len(inside.parts) > 1 else inside.stem) != room:
            continue
        for name in imported(path):
            top, _, rest = name.partition(".")
            if top == "shoal":
                assert any(f"{rest}.".startswith(f"{a}.") for a in allowed), (
                    f"{named(path)} imports {name}; {room} may import {', '.join(allowed)}"
                )
            assert top not in NEVER.get(room, ()), f"{named(path)} imports {name}; {room} never imports {top}"


def test_there_is_no_import_cycle() -> None:
    modules = {module_name(p): p for p in python_files("platform")}
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted = imported(path, inside_functions=False)
        targets = {w if w in modules else w.rpartition(".")[0] for w in wanted}
        edges[name] = {t for t in targets if t in modules and t != name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_import_neither_ray_nor_torch(room: str) -> None:
    inside = SOURCE.joinpath(*room.split(".")[1:])
    files = inside.rglob("*.py") if inside.is_dir() else [inside.with_suffix(".py")]
    names = [module_name(p) for p in files]
    loaded = run_python(f"import sys, {', '.join(names)}; print([m for m in ('ray', 'torch') if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_processes_without_tensors_do_not_load_torch() -> None:
    names = ["shoal.tasks", "shoal.cli.main", "shoal.launch.api", "shoal.launch.train", "shoal.coordinator.actor"]
    names += ["shoal.data.feed", "shoal.tracking.recorder"]
    loaded = run_python(f"import sys, {', '.join(names)}; print([m for m in ('torch', 'mlflow') if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_importing_shoal_is_cheap() -> None:
    code = (
        "import sys, time; begun = time.process_time(); import shoal, shoal.tasks, shoal.cli.main; "
        "assert not {'ray', 'torch', 'mlflow', 'deepspeed', 'transformers'} & set(sys.modules); "
        "print(time.process_time() - begun)"
    )
    seconds = min(float(run_python(code)) for _ in range(3))
    assert seconds < 0.3, f"import shoal and its command line took {seconds:.2f} CPU seconds"


# Hidden knobs and private names ------------------------------------------------------------------------------------


def test_environment_variables_are_declared_in_one_place() -> None:
    found = {name for p in python_files("platform", "jobs") for name in re.findall(r"\bSHOAL_[A-Z_]+\b", p.read_text())}
    assert found <= set(environment.VARIABLES), f"undeclared: {sorted(found - set(environment.VARIABLES))}"
    assert all(sentence.endswith(".") for sentence in environment.VARIABLES.values())


@pytest.mark.parametrize("package", COMPAT)
def test_private_names_stay_in_the_compat_file(package: str) -> None:
    bad = [
        f"{named(p)}: {name}"
        for p in python_files("platform", "jobs", "benchmarks")
        if p.name != COMPAT[package]
        for name in private_names(tree(p), package)
    ]
    assert not bad, f"use {COMPAT[package]} instead: {bad}"


def test_private_names_are_seen() -> None:
    code = """
import ray._private.worker
import ray.util.state as state
from ray.actor import _modify_class
from ray import data
ray.worker._global_node
state._x.y
data.Dataset._plan
ray.__version__
ray.util.placement_group
"""
    assert sorted(private_names(ast.parse(code), "ray")) == [
        "ray._private.worker", "ray.actor._modify_class", "ray.data.Dataset._plan", "ray.util.state._x",
        "ray.worker._global_node",
    ]  # fmt: skip


def private_names(module: ast.Module, package: str) -> set[str]:
    """Dotted names below `package` with a part that begins with one underscore, under whatever local name."""
    local: dict[str, str] = {}
    used: list[str] = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            used += [a.name for a in node.names]
            local.update({a.asname or a.name.partition(".")[0]: a.name if a.asname else package for a in node.names
                          if a.name.partition(".")[0] == package})  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package:
            used += [f"{node.module}.{a.name}" for a in node.names]
            local.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            head, _, rest = ast.unparse(node).partition(".")
            if head in local and re.fullmatch(r"[\w.]+", rest):
                used.append(f"{local[head]}.{rest}")
    private = {name for name in used if name.partition(".")[0] == package and re.search(r"\._[a-zA-Z]", name)}
    return {name for name in private if not any(other != name and name.startswith(f"{other}.") for other in private)}


# Errors ------------------------------------------------------------------------------------------------------------


def test_errors_are_declared_in_one_place() -> None:
    ours = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    elsewhere = [
        f"{named(p)}: {node.name}"
        for p in python_files("platform")
        if p != SOURCE / "errors.py"
        for node in ast.walk(tree(p))
        if isinstance(node, ast.ClassDef) and ours & {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    ]
    assert not elsewhere, f"move to shoal/errors.py: {elsewhere}"


@pytest.mark.parametrize(
    "kind", [v for v in vars(errors).values() if inspect.isclass(v) and issubclass(v, errors.ShoalError)]
)
def test_errors_survive_pickling(kind: type[errors.ShoalError]) -> None:
    error = pickle.loads(pickle.dumps(kind("lr=-1 must be more than 0")))
    assert type(error) is kind
    assert str(error) == "lr=-1 must be more than 0"
    assert 1 <= error.exit_code <= 255


# The project as a whole --------------------------------------------------------------------------------------------


def project_files() -> Iterator[Path]:
    """All text files that belong to the project."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            f for f in folders
            if f not in (".git", "runs", "build", "dist", "node_modules") and not f.startswith((".venv", ".hypothesis"))
            and not f.endswith(("_cache", "__pycache__", ".egg-info"))
        ]  # fmt: skip
        yield from (
            path for name in files
            if (path := Path(folder, name)).suffix in (".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cfg", "")
        )  # fmt: skip


def test_no_file_names_a_place_on_one_machine() -> None:
    one_machine = re.compile(rf"{re.escape(str(ROOT))}\b|/(?:home|Users)/[a-z]")
    found = [named(p) for p in project_files() if one_machine.search(p.read_text(errors="replace"))]
    assert not found, f"absolute paths of one machine in {found}"


def test_every_page_is_linked_from_the_table_of_contents() -> None:
    docs = ROOT / "docs"
    for index in (docs / "README.md", *docs.glob("*/README.md")):
        linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#:]+)", index.read_text())}
        pages = {p.resolve() for p in index.parent.glob("*.md") if p != index}
        assert pages <= linked, f"not linked from {named(index)}: {sorted(map(named, pages - linked))}"


def test_links_between_pages_lead_somewhere() -> None:
    pages = [p for p in project_files() if p.suffix == ".md"]
    dead = [
        f"{named(page)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not dead, f"dead links: {dead}"


def test_the_version_is_said_once_and_the_same() -> None:
    import shoal

    assert importlib.metadata.version("shoal") == shoal.__version__
