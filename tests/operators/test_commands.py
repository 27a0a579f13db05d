"""The command line itself: its help, version and ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmcast
from shmcast import Writer
from shmcast._operators import commands
from tests.support.operators import rows, run_shmcast
from tests.support.terminal import WIDTH


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


COMMANDS = [
    "", "--help", "--version", "list", "list --json", "diagnose", "diagnose --json", "doctor",
    "doctor --json", "top --once --seconds 0.1", "top --once --json --seconds 0.1",
    "top --json --seconds 0.1", "clean --dry-run", "clean --dry-run --json",
]  # fmt: skip


def run_in_shell(command: str) -> subprocess.CompletedProcess[str]:
    program = f"set -o pipefail; {command.format(shmcast=f'{sys.executable} -m shmcast')}"
    return subprocess.run(  # noqa: S602
        program,
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
    )


@pytest.fixture
def broadcaster() -> Iterator[Writer]:
    with Writer(1, label="told to no one") as writer:
        yield writer


@pytest.mark.usefixtures("broadcaster")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ["| true", "| head -c 1 >/dev/null", ">&-"])
def test_what_is_not_read_is_no_error(command: str, where: str) -> None:
    if where == ">&-" and command.startswith("top --json"):
        command += " --once"  # (nobody would end it)
    ran = run_in_shell(f"{{shmcast}} {command} {where}")
    assert (ran.returncode in (0, commands.SOMETHING_WRONG), ran.stdout, ran.stderr) == (
        True, "", ""
    ), ran  # fmt: skip


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("top --json")])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict"])
def test_what_the_encoding_lacks_is_printed_otherwise(command: str, encoding: str) -> None:
    with Writer(1, label="größer → als vierzig Zeichen, damit es gekürzt wird"):
        ran = run_in_shell(f"PYTHONIOENCODING={encoding} {{shmcast}} {command}")
    assert (ran.returncode in (0, commands.SOMETHING_WRONG), ran.stderr) == (True, ""), ran
    if command == "list":
        assert r"\u2026" in ran.stdout
    if command == "top --once --seconds 0.1":
        assert "gr" in ran.stdout
        assert max(map(len, ran.stdout.splitlines())) <= WIDTH


def test_an_argument_that_is_no_text_is_told_too() -> None:
    ran = run_in_shell("{shmcast} list $'\\xff\\xe4'")
    assert (ran.returncode, ran.stderr) == (commands.NOTHING_FOUND, "")
    assert "No process of this user has a broadcaster" in ran.stdout


@pytest.mark.parametrize("unbuffered", ["", "PYTHONUNBUFFERED=1 "])
@pytest.mark.usefixtures("broadcaster")
@pytest.mark.parametrize("command", COMMANDS)
def test_what_can_not_be_printed_is_told(command: str, unbuffered: str) -> None:
    ran = run_in_shell(f"{unbuffered}{{shmcast}} {command} >/dev/full")
    told = "shmcast can't print: No space left on device\n"
    assert (ran.returncode, ran.stderr) == (1, told)


def test_the_code_is_the_commands_whether_or_not_it_is_read() -> None:
    ran = run_in_shell("{shmcast} diagnose 'no such label' | true")
    assert (ran.returncode, ran.stderr) == (commands.NOTHING_FOUND, "")


def test_an_interrupt_before_it_has_begun_ends_it_as_shells_expect() -> None:
    program = (
        "import signal, sys; from shmcast.__main__ import main\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'shmcast._operators.commands': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.exit(main())"
    )
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_wrong_numbers_are_told_in_words() -> None:
    ran = run_shmcast("bench", "--readers", "many")
    assert ran.returncode == 2
    assert "argument --readers: 'many' is no whole number from 1 to 4096" in ran.stderr


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
