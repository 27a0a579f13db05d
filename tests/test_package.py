"""What is installed is what is documented."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import shmcast
from shmcast import _core

PACKAGE = Path(shmcast.__file__).parent


def test_the_version_is_the_installed_one() -> None:
    assert shmcast.__version__ == version("shmcast")


def test_users_own_torch_satisfies_the_requirement() -> None:
    assert "torch>=2.4" in (requires("shmcast") or [])


def test_the_stub_documents_the_core_as_it_is() -> None:
    documented = {}
    for node in ast.parse((PACKAGE / "_core.pyi").read_text()).body:
        if isinstance(node, ast.ClassDef) and "Protocol" not in map(ast.unparse, node.bases):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            documented[node.name] = {name for name in methods if not name.startswith("_")}
    actual = {}
    for name, thing in vars(_core).items():
        if isinstance(thing, type):
            actual[name] = {method for method in vars(thing) if not method.startswith("_")}
    assert documented == actual


def test_the_package_is_typed_and_lists_its_public_names() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert sorted(shmcast.__all__) == shmcast.__all__
    assert all(hasattr(shmcast, name) for name in shmcast.__all__)


def test_a_checkout_without_the_built_core_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "shmcast", ignore=shutil.ignore_patterns("*.so"))
    # -S: without site-packages, where an editable install would find the core of this checkout.
    program = [sys.executable, "-S", "-c", "import shmcast"]
    run = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)  # noqa: S603
    assert run.returncode == 1
    sentence = run.stderr.splitlines()[-1]
    assert sentence.startswith(f"ImportError: shmcast in {tmp_path / 'shmcast'} has no C++ core")
    assert "pip install -e ." in sentence
