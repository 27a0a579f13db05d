"""Run the README's program with the package that is installed: `python PATH/quick_start.py`.

It needs nothing else, and no other file of the tests: wheels are tested by it, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
PRINTED = [f"worker got {{'step': {n}, 'tokens': [{n}, {n}, {n}, {n}]}}" for n in range(3)]


def run(python: str, environment: Mapping[str, str] | None = None) -> None:
    """Run it by an interpreter, away from this checkout.

    Args:
        python: the interpreter.
        environment: of the program; None: this process's.

    Raises:
        RuntimeError: it fails, or prints something else.
    """
    [program] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "program.py")
        script.write_text(program)
        ran = subprocess.run(  # noqa: S603
            [python, str(script)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=55,
            check=False,
            env=environment,
        )
    if ran.returncode != 0 or ran.stdout.splitlines() != PRINTED:
        raise RuntimeError(f"exit code {ran.returncode}, printed {ran.stdout!r}\n{ran.stderr}")


if __name__ == "__main__":
    run(sys.executable)
    sys.stdout.write("the README's program runs\n")
