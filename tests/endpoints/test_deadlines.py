"""A call ends at its time-out, however many waits it consists of, and whatever number that is."""

from __future__ import annotations

import math
import threading
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import shmcast
from shmcast import Reader, WaitPolicy, Writer
from shmcast._endpoints.arguments import check_seconds
from shmcast._group.single_rank import SingleRank

FOR_EVER = [math.inf, 1e300, 10**400, np.float64("inf"), 2**63, 1e10]
SECONDS = [0, 0.0, 1, True, np.float32(0.5), np.int64(1), Decimal("0.5"), Fraction(1, 2), -0.0]
NONE = [-1, -1e-9, -math.inf, math.nan, -(10**400), "1", b"1", "x", [], ..., 1j]


def test_the_waits_of_one_call_share_its_time() -> None:
    """The start of a message comes late in a call, and its rest never."""
    with Writer(1, slots=4, slot_bytes=128) as writer, Reader(writer.handle, 0) as reader:
        errors: list[Exception] = []

        def receive() -> None:
            try:
                reader.recv(2.0)
            except shmcast.Timeout as error:
                errors.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        while reader.statistics().parked_seconds < 1.5:
            assert not errors
            time.sleep(0.01)
        with pytest.raises(shmcast.Timeout):
            writer.send(bytes(5000), timeout=0)
        thread.join()
        assert len(errors) == 1
        spent = reader.statistics()
        assert spent.abandoned == 0
        assert spent.parked_seconds + spent.spun_seconds < 3.2  # not 1.5 and again 2


def test_who_waits_for_no_time_looks_once() -> None:
    with Writer(1) as writer:
        with pytest.raises(shmcast.Timeout):
            writer.wait_ready(0)
        with Reader(writer.handle, 0) as reader:
            writer.wait_ready(0)
            reader.wait_ready(0)


def test_a_message_behind_abandoned_ones_is_received_by_who_looks_only() -> None:
    with Writer(1, slots=16, slot_bytes=128) as writer, Reader(writer.handle, 0) as reader:
        with pytest.raises(shmcast.Timeout):
            writer.send(bytes(5000), timeout=0)
        with pytest.raises(shmcast.Timeout):
            reader.recv(0)
        for _ in range(3):
            with pytest.raises(shmcast.Timeout):
                writer.send(bytes(5000), timeout=0)
            with pytest.raises(shmcast.Timeout):
                reader.recv(0)
        writer.send("whole")
        assert reader.recv(0) == "whole"
        assert reader.statistics().abandoned == 4


def test_a_message_of_many_fragments_that_is_there_is_received_by_who_looks_only() -> None:
    with Writer(1, slots=64, slot_bytes=128) as writer, Reader(writer.handle, 0) as reader:
        writer.send(bytes(6000), timeout=0)
        assert reader.recv(0) == bytes(6000)


HUGE = bytes(1 << 24)  # in so many slots the writer has to wait, however fast the reader


class Abandoning:
    """Sends the beginnings of messages, one after the other, until it is told to stop."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._is_over = False
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        while not self._is_over:
            try:
                self._writer.send(HUGE, timeout=0)
            except shmcast.Timeout:
                continue
            except shmcast.Closed:
                break

    def end(self) -> None:
        self._is_over = True
        self._thread.join()


@pytest.mark.parametrize("timeout", [0, 0.01, 0.3])
def test_abandoned_messages_keep_nobody(timeout: float) -> None:
    """A writer whose sends time out half-way, again and again, does not prolong a recv."""
    with (
        Writer(1, slots=4, slot_bytes=4096, spill_bytes=0) as writer,
        Reader(writer.handle, 0) as reader,
    ):
        abandoning = Abandoning(writer)
        try:
            for _ in range(3):
                with pytest.raises(shmcast.Timeout):
                    reader.recv(timeout)
        finally:
            abandoning.end()


def test_close_ends_a_recv_that_meets_abandoned_messages_only() -> None:
    with Writer(1, slots=4, slot_bytes=4096, spill_bytes=0) as writer:
        reader = Reader(writer.handle, 0)
        abandoning = Abandoning(writer)
        try:
            errors: list[Exception] = []

            def receive() -> None:
                try:
                    reader.recv()
                except shmcast.Closed as error:
                    errors.append(error)

            thread = threading.Thread(target=receive)
            thread.start()
            while reader.statistics().abandoned < 3:
                pass
            reader.close()
            thread.join()
            assert len(errors) == 1
        finally:
            abandoning.end()


@pytest.mark.parametrize("timeout", FOR_EVER, ids=repr)
def test_what_is_beyond_all_time_is_no_limit(timeout: Any) -> None:
    with Writer(1, warn_after=timeout) as writer, Reader(writer.handle, 0) as reader:
        writer.wait_ready(timeout)
        writer.send("in time", timeout)
        assert reader.recv(timeout) == "in time"
        thread = threading.Thread(target=lambda: writer.send("late"))
        thread.start()
        assert reader.recv(timeout) == "late"
        thread.join()
    SingleRank("one").send(None, timeout)
    assert check_seconds("timeout", timeout, "") in (timeout, math.inf)


@pytest.mark.parametrize("timeout", SECONDS, ids=repr)
def test_any_number_is_one_of_seconds(timeout: Any) -> None:
    with Writer(1, warn_after=timeout) as writer, Reader(writer.handle, 0) as reader:
        writer.send(1, timeout)
        assert reader.recv(timeout) == 1
        with pytest.raises(shmcast.Timeout):
            reader.recv(timeout)
    SingleRank("one").send(None, timeout)
    assert check_seconds("timeout", timeout, "") == abs(float(timeout))


@pytest.mark.parametrize("timeout", NONE, ids=repr)
def test_what_is_no_duration_is_refused(timeout: Any) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for call in (writer.wait_ready, reader.recv, reader.wait_ready):
            with pytest.raises(shmcast.InvalidArgument, match=r"timeout=.* must be None or"):
                call(timeout)
        with pytest.raises(shmcast.InvalidArgument, match=r"writer: send: timeout=.* must be"):
            writer.send(1, timeout)
        with pytest.raises(shmcast.InvalidArgument, match=r"reader 0: warn_after=.* must be None"):
            Reader(writer.handle, 0, warn_after=timeout)
    with pytest.raises(shmcast.InvalidArgument, match=r"writer: warn_after=.* must be None or"):
        Writer(1, warn_after=timeout)
    with pytest.raises(shmcast.InvalidArgument, match=r"one: send: timeout="):
        SingleRank("one").send(None, timeout)
    with pytest.raises(shmcast.InvalidArgument, match=r"max_spin="):
        WaitPolicy.adaptive(timeout)


@pytest.mark.parametrize("max_spin", [0, 1e-9, 25, *FOR_EVER], ids=repr)
def test_any_limit_of_spinning_is_good(max_spin: Any) -> None:
    wait = WaitPolicy.adaptive(max_spin)
    with Writer(1, wait=wait) as writer, Reader(writer.handle, 0, wait=wait) as reader:
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.02)
        writer.send(1)
        assert reader.recv() == 1
        assert max_spin or reader.statistics().spun_seconds == 0


def test_a_spin_time_must_be_given_as_a_number() -> None:
    with pytest.raises(shmcast.InvalidArgument, match=r"max_spin=None"):
        WaitPolicy.adaptive(None)  # type: ignore[arg-type]
