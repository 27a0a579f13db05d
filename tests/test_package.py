"""What is installed is what is documented."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import shmcast
from shmcast import _core

PACKAGE = Path(shmcast.__file__).parent
CORE = PACKAGE.parent / "core"
CORE_FLOORS = {
    "descriptor.hpp": 0,
    "figures.hpp": -1,
    "layout.hpp": 0,
    "copy": 0,
    "python": 0,
    "pickle": 1,
    "codec": 1,
    "wait": 1,
    "arena": 1,
    "watch": 2,
    "ring": 2,
    "hub": 3,
    "observe": 4,
    "bindings": 5,
}


def test_the_version_is_the_installed_one() -> None:
    assert shmcast.__version__ == version("shmcast")


def test_it_requires_numpy_only_and_takes_users_own_torch() -> None:
    told = requires("shmcast") or []
    assert [requirement for requirement in told if "extra ==" not in requirement] == ["numpy>=1.24"]
    assert any(re.fullmatch(r"torch>=2\.4; extra == .torch.", each) for each in told)


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


def test_public_classes_say_that_they_are_the_packages() -> None:
    public = [getattr(shmcast, name) for name in shmcast.__all__]
    classes = [thing for thing in public if isinstance(thing, type)]
    assert {cls.__module__ for cls in classes} == {"shmcast"}
    assert all(getattr(shmcast, cls.__qualname__) is cls for cls in classes)


def test_a_checkout_without_the_built_core_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "shmcast", ignore=shutil.ignore_patterns("*.so"))
    # -S: without site-packages, where an editable install would find the core of this checkout.
    program = [sys.executable, "-S", "-c", "import shmcast"]
    run = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)  # noqa: S603
    assert run.returncode == 1
    sentence = run.stderr.splitlines()[-1]
    assert sentence.startswith(f"ImportError: shmcast in {tmp_path / 'shmcast'} has no C++ core")
    assert "pip install -e ." in sentence


def test_an_archive_is_told_from_a_checkout(tmp_path: Path) -> None:
    archive = tmp_path / "shmcast.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (PACKAGE / "__init__.py", PACKAGE / "_version.py"):
            file.write(path, f"shmcast/{path.name}")
    program = [sys.executable, "-S", "-c", "import shmcast"]
    environment = os.environ | {"PYTHONPATH": str(archive)}
    run = subprocess.run(  # noqa: S603
        program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert f"ImportError: shmcast can't be imported from {archive}/shmcast: " in run.stderr
    assert "unpack the archive" in run.stderr


@pytest.mark.skipif(not CORE.is_dir(), reason="not in a checkout")
def test_rooms_of_the_core_include_lower_floors_only() -> None:
    files = [path.relative_to(CORE) for path in CORE.rglob("*.[hc]pp")]
    assert {path.parts[0] for path in files} == set(CORE_FLOORS)
    for path in files:
        room = path.parts[0]
        for included in re.findall(r'#include "(.+)"', (CORE / path).read_text()):
            other = included.split("/")[0]
            assert other == room or CORE_FLOORS[other] < CORE_FLOORS[room], f"{path}: {included}"


def test_help_tells_what_each_field_means() -> None:
    for cls in (shmcast.Handle, shmcast.Node, shmcast.Statistics, shmcast.Topology):
        documented = re.findall(r"^    (\w+): ", inspect.getdoc(cls) or "", re.MULTILINE)
        assert documented == [field.name for field in dataclasses.fields(cls)]


def test_what_few_need_is_loaded_when_it_is_used() -> None:
    program = """
import sys, shmcast
lazy = {"Hub", "HubHandle", "Member", "MsgspecCodec", "Node", "Reader", "ShmBroadcaster"}
lazy |= {"Statistics", "Topology", "Writer"}
assert lazy <= {*dir(shmcast)} and lazy.isdisjoint(vars(shmcast))
assert {m for m in sys.modules if m.startswith("shmcast")} == {
    "shmcast", "shmcast._version", "shmcast.errors"
}
from shmcast._nodes.topology import Topology  # by another way
assert shmcast.Topology is Topology and Topology.__module__ == "shmcast"
from shmcast import *
assert ShmBroadcaster is shmcast.ShmBroadcaster and lazy <= {*vars(shmcast)}
try:
    shmcast.Missing
except AttributeError as error:
    print(error)
"""
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.stdout == "module 'shmcast' has no attribute 'Missing'\n", ran.stderr
