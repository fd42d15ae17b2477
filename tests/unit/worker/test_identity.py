"""What tells one worker's code, model and arithmetic from another's."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from shoal.membership.admission import refusal
from shoal.worker import identity
from shoal.worker.identity import identity_of

pytestmark = pytest.mark.unit


def test_a_process_is_like_itself() -> None:
    assert refusal(identity_of("m", None), identity_of("m", None)) is None


def test_models_and_arithmetic_are_compared() -> None:
    here = identity_of("a" * 64, "1234")
    assert refusal(identity_of("b" * 64, "1234"), here) == f"model is {'b' * 16}, not {'a' * 16}"
    assert refusal(identity_of("a" * 64, "5678"), here) == "arithmetic is 5678, not 1234"
    assert refusal(identity_of("a" * 64, None), here) is None, "where rounding may differ it is not compared"


def test_a_users_own_module_counts_and_an_installed_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my_layers.py"
    file.write_text("WIDTH = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("my_layers")
    before = identity_of("m", None)
    assert "module my_layers" in before
    assert not any(name.startswith(("module torch", "module shoal", "module json")) for name in before)
    file.write_text("WIDTH = 4\n")
    assert str(refusal(identity_of("m", None), before)).startswith("module my_layers is ")
    monkeypatch.delitem(sys.modules, "my_layers")


def test_shoals_own_code_counts(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("A = 1\n")
    before = identity._package_digest(package)
    (package / "more.py").write_text("B = 2\n")
    assert identity._package_digest(package) != before
