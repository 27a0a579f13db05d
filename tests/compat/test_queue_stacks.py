"""A process is asked for its Python stacks by a signal only if it takes that."""

from __future__ import annotations

import subprocess
import sys
from shutil import which
from unittest import mock

import pytest

from shmcast.compat._queues import stacks
from tests.support.subprocess_programs import ROOT

_PROGRAM = """
import sys
from shmcast.compat._queues.stacks import offer_stacks
def wait_here():
    print(flush=True)
    sys.stdin.read()
offer_stacks()
wait_here()
"""


@pytest.mark.skipif(which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(("before", "is_asked"), [("trap '' RTMAX-2; ", False), ("", True)])
def test_who_ignores_the_signal_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, before: str, is_asked: bool
) -> None:
    monkeypatch.setattr(stacks, "stack_of", lambda pid: "")  # as without py-spy
    send = mock.Mock(wraps=stacks._send)
    monkeypatch.setattr(stacks, "_send", send)
    command = ["bash", "-c", before + 'exec "$@"', "-", sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert ("wait_here" in stacks.python_stack(process.pid)) == is_asked
        assert send.called == is_asked
        process.communicate()
    assert process.returncode == 0
