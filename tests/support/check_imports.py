"""Check the rules for imports that no linter knows: `python -m tests.support.check_imports`.

`make lint` runs it. Layers and circles are import-linter's, uses of `_private` attributes ruff's.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("shmcast", "bench", "examples", "tests")
WITHOUT_DISTRIBUTED = ("shmcast/_codecs/", "shmcast/_endpoints/", "shmcast/_host/", "shmcast/_hub/")


class Import(NamedTuple):
    """One imported name: of `import MODULE`, or of `from MODULE import NAME`."""

    line: int
    module: str
    name: str | None

    @property
    def target(self) -> str:
        """What is imported, with its module."""
        return self.module if self.name is None else f"{self.module}.{self.name}"


def violations(path: str, source: str) -> list[str]:
    """Return what is wrong with a file's imports, each as `PATH:LINE: what`.

    Args:
        path: of the file, relative to the checkout, with slashes.
        source: its text.

    Raises:
        SyntaxError: it is no Python.
    """
    tree = ast.parse(source, path)
    found = [(i.line, f"{i.target}: {why}") for i in _imports(tree) for why in _reasons(path, i)]
    if path.startswith(WITHOUT_DISTRIBUTED):
        found += [(line, "this room does not know process groups") for line in _distributed(tree)]
    return [f"{path}:{line}: {what}" for line, what in sorted(found)]


def _imports(tree: ast.AST) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (Import(node.lineno, module, alias.name) for alias in node.names)


def _reasons(path: str, found: Import) -> Iterator[str]:
    """Yield which rules an import breaks."""
    module, name = found.module, found.name
    package = path.split("/")[0]
    if module.startswith("."):
        yield "a relative import; write the whole name"
    if package == "shmcast":
        if name is None and (module == "shmcast" or module.startswith("shmcast.")):
            yield "inside the package, import a name from the module that owns it"
        if module == "shmcast" and name != "_core":
            yield "inside the package, import a name from the module that owns it"
        if _is_within(found.target, "torch.distributed") and path.startswith(WITHOUT_DISTRIBUTED):
            yield "this room does not know process groups"
    if package == "bench" and found.target.startswith("shmcast._"):
        yield "the benchmark uses the package as its users do"
    if package != "tests" and _is_within(found.target, "tests"):
        yield "only tests import from tests"
    if name is not None and _is_private(module, name):
        yield "another module's private name"
    if Path(path).name.startswith("test_") and any(
        part.startswith("test_") for part in found.target.split(".")
    ):
        yield "a test module imports no other; what they share belongs into tests/support"


def _is_within(target: str, package: str) -> bool:
    return target == package or target.startswith(f"{package}.")


def _is_private(module: str, name: str) -> bool:
    """Return whether a name is private to a module of this repository; `_core` is the package's."""
    is_ours = module.split(".")[0] in FOLDERS
    is_private = name.startswith("_") and not name.startswith("__")
    return is_ours and is_private and (module, name) != ("shmcast", "_core")


def _distributed(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of the expression `torch.distributed`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield node.lineno


def main() -> None:
    """Check all files; exit with what is wrong, if anything is."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [
        line
        for path in paths
        for line in violations(path.relative_to(ROOT).as_posix(), path.read_text())
    ]
    if found or not paths:
        sys.exit("\n".join(found) or f"no files in {ROOT}")


if __name__ == "__main__":
    main()
