"""Recipes are loaded by path, travel by value, and their errors are told without a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shoal.errors import ConfigError
from shoal.job import by_value
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe

pytestmark = pytest.mark.unit

HEAD = """
from __future__ import annotations
from dataclasses import dataclass
from shoal.job import Budget, Data, Job
from shoal.tasks.base import Task
"""

TASK = """
@dataclass(frozen=True, slots=True)
class Mine(Task):
    width: int = 4
    depth: Depth | None = None
    def build(self): return self.width
    def loss(self, model, batch): return 0

Depth = int
def make(**values): return Job(task=Mine(), data=Data(train="x"), budget=Budget(steps=3), **values)
"""

RECIPE = HEAD + TASK + "job = make()\nsmall = make(name='small')\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def elsewhere(tmp_path, pickled: bytes, expression: str) -> str:
    """`expression` of the unpickled value `it`, in a process that has never seen the recipe's folder."""
    (tmp_path / "other").mkdir(exist_ok=True)
    code = (
        f"import sys; from shoal.job import by_value; it = by_value.loads(sys.stdin.buffer.read()); print({expression})"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, cwd=tmp_path / "other")
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_a_recipe_defines_a_job_and_its_class_travels_by_value(write, tmp_path):
    path = write("jobs/gpt.py", RECIPE)
    recipe = load_recipe("jobs/gpt.py")
    assert (recipe.path, recipe.name, recipe.reference, recipe.job.name) == (path, "job", "gpt.py", "job")
    job = apply(recipe.job, ["task.width=8", "task.depth=2"])
    assert elsewhere(tmp_path, by_value.dumps(job), "(it.task.width, it.task.depth, it.task.build())") == "(8, 2, 8)"


def test_helpers_beside_the_recipe_travel_too(write, tmp_path):
    write("a/helper.py", "import math\nfrom pkg.deep import two\ndef four(): return two() * int(math.sqrt(4))\n")
    write("a/pkg/deep.py", "def two(): return 2\n")
    write(
        "a/r.py", RECIPE + "import helper\nimport pkg.deep\nMine.build = lambda self: helper.four() + pkg.deep.two()\n"
    )
    recipe = load_recipe("a/r.py")
    assert {p.name for p in recipe.sources} == {"r.py", "helper.py", "deep.py"}
    assert elsewhere(tmp_path, by_value.dumps(recipe.job), "it.task.build()") == "6"
    assert not list(tmp_path.glob("a/**/__pycache__")), "loading leaves nothing in the user's folder"
    assert str(tmp_path / "a") not in sys.path


def test_each_load_sees_its_own_folder_as_it_is_now(write):
    for folder, value in (("a", 1), ("b", 2)):
        write(f"{folder}/helper_of_tests.py", f"value = {value}\n")
        write(f"{folder}/r.py", RECIPE + "import helper_of_tests\njob = make(seed=helper_of_tests.value)\n")
    first = load_recipe("a/r.py").job
    assert (first.seed, load_recipe("b/r.py").job.seed) == (1, 2)
    write("b/helper_of_tests.py", "value = 3\n")
    assert load_recipe("b/r.py").job.seed == 3
    assert apply(first, ["task.width=6"]).task.width == 6, "an earlier recipe's job stays usable"


def test_other_names_and_functions(write):
    write("r.py", RECIPE + "def job(): return make(name='made')\ndef wants(x): return x\nnumber = 3\n")
    assert load_recipe("r.py").job.name == "made"
    recipe = load_recipe("r.py:small")
    assert (recipe.job.name, recipe.reference) == ("small", "r.py:small")
    with pytest.raises(ConfigError, match=r"`wants` in r\.py must be callable without arguments"):
        load_recipe("r.py:wants")
    with pytest.raises(ConfigError, match=r"`number` in r\.py is a int, not a shoal\.Job; Jobs in this file: small"):
        load_recipe("r.py:number")
    with pytest.raises(ConfigError, match=r"defines no `big`; it defines small: use r\.py:small"):
        load_recipe("r.py:big")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", r"^r\.py:1: .*never closed"),
        (
            "\n\nx = undefined_name\n",
            r"^r\.py:3: NameError: name .* is not defined\n    x = undefined_name$",
        ),
        ("import not_installed_anywhere\n", r"^r\.py:1: ModuleNotFoundError.*install it, or put it beside r\.py"),
        ("def f():\n    raise OSError('no')\nf()\n", r"^r\.py:2: OSError: no"),
        ("raise SystemExit('bye')\n", r"^r\.py:1: SystemExit: bye"),
        ("from shoal.job import Batch\nBatch(size=7)\n", r"^r\.py:2: batch\.size=7 cannot be split"),
        ("import broken\n", r"^broken\.py:2: .*\n    def$"),
        ("import json\njson.loads('{')\n", r"^r\.py:2: JSONDecodeError"),
        ("def job():\n    return 1 / 0\n", r"^r\.py:2: ZeroDivisionError"),
        ("x = 1\n", r"defines no `job`; write"),
        ("x\0 = 1\n", r"r\.py.*null"),
    ],
)
def test_errors_in_a_recipe_name_file_and_line(write, text, message):
    write("broken.py", "x = 1\ndef\n")
    write("r.py", text)
    with pytest.raises(ConfigError, match=message):
        load_recipe("r.py")


def test_a_missing_recipe_names_the_near_ones(write):
    write("jobs/gpt.py", "")
    write("jobs/digits.py", "")
    write("notes.txt", "")
    with pytest.raises(ConfigError, match=r"no recipe jobs/gtp\.py; did you mean jobs/gpt\.py\? Recipes here: jobs/d"):
        load_recipe("jobs/gtp.py")
    with pytest.raises(ConfigError, match=r"did you mean jobs/gpt\.py\?"):
        load_recipe("gpt")
    with pytest.raises(ConfigError, match=r"no recipe jobs; Recipes here: jobs/digits\.py, jobs/gpt\.py"):
        load_recipe("jobs")
    with pytest.raises(ConfigError, match=r"notes\.txt is no Python file"):
        load_recipe("notes.txt")


def test_loading_a_recipe_does_not_import_torch(write, tmp_path):
    write("r.py", RECIPE)
    code = "import sys; from shoal.job.recipe import load_recipe; load_recipe('r.py'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
