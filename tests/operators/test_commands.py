"""The command line itself: its help, version and ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import shmcast
from shmcast import Writer
from shmcast._operators import commands
from tests.support.operators import rows, run_shmcast


def test_the_console_script_and_the_module_are_the_same_program() -> None:
    script = Path(sys.executable).with_name("shmcast")
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    assert ran.stdout == f"shmcast {shmcast.__version__}\n" == run_shmcast("--version").stdout


def test_the_help_names_each_command_and_the_exit_codes() -> None:
    text = run_shmcast().stdout
    assert all(name in text for name in ("list", "diagnose", "doctor", "clean", "exit codes"))


def test_a_wrong_option_has_its_code() -> None:
    ran = run_shmcast("list", "--colour")
    assert ran.returncode == 2
    assert "--colour" in ran.stderr
    assert run_shmcast("lists").returncode == 2


def test_clean_prints_json_too() -> None:
    with Writer(1) as writer:
        [row] = [r for r in rows("clean", "--dry-run") if r["name"] == writer.handle.name]
    assert (row["removed"], row["owner"]) == (False, "alive")


def test_what_reads_no_further_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = f"{sys.executable} -m shmcast doctor --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(  # noqa: S602
        program, shell=True, executable="/bin/bash", capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr) == ("[", "")


def test_no_command_imports_torch() -> None:
    program = (
        "import sys; from shmcast._operators import commands; commands.main(['list', '--json']); "
        "assert 'torch' not in sys.modules"
    )
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert isinstance(json.loads(ran.stdout), list)


def test_an_interrupt_ends_it_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "all_snapshots", interrupted)
    assert commands.main(["list"]) == 130
