"""Sent loans are frozen until every reader is done with them; dropped ones are free."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import Reader, Writer
from tests.support.arena import PAGE, check_whole, is_free, send_uncopied
from tests.support.arena_roles import ARENA, LARGE, MIB, SECONDS, Array, filled

# Frozen, and thawed


def test_a_sent_array_is_frozen_until_every_reader_is_done(no_gc: None) -> None:
    with (
        Writer(2, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0) as one,
        Reader(writer.handle, 1) as two,
    ):
        loan = writer.empty(MIB, np.uint8)
        assert writer.thaw(loan)  # it was not sent
        loan[:] = 1
        writer.send(loan)

        def check_frozen() -> None:
            assert not writer.thaw(loan)
            assert not writer.thaw(loan[5:])
            with pytest.raises(ValueError, match="read-only"):
                loan[0] = 5

        check_frozen()  # nobody has received it
        copied = one.recv(SECONDS)
        check_frozen()
        view = two.recv(SECONDS, copy=False)
        check_frozen()
        part = view[3:4]
        del view
        check_frozen()
        del part
        assert writer.thaw(loan)
        loan[:] = 2
        assert np.array_equal(copied, filled(MIB, 1))
        writer.send(loan)
        check_frozen()
        for reader in (one, two):
            assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, 2))
        assert writer.thaw(loan)


def test_each_send_thaws_what_is_done(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    writer.send(loan)
    writer.send("not yet")
    assert not loan.flags.writeable
    reader.recv(SECONDS)
    assert not loan.flags.writeable
    writer.send("now")
    assert loan.flags.writeable


def test_a_frozen_loan_can_be_sent_again_and_is_one_thing(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    loan[:] = 6
    for _ in range(3):
        send_uncopied(writer, loan)
    views = [reader.recv(SECONDS, copy=False) for _ in range(2)]
    views.clear()
    assert not writer.thaw(loan)  # the third is unread
    views.append(reader.recv(SECONDS, copy=False))
    assert not writer.thaw(loan)
    assert np.array_equal(views.pop(), filled(MIB, 6))
    assert writer.thaw(loan)


def test_a_view_that_was_not_in_the_message_stays_writable(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    kept, sent = loan[:10], loan[PAGE:]
    writer.send(sent)
    assert (kept.flags.writeable, sent.flags.writeable, loan.flags.writeable) == (
        True,
        False,
        False,
    )
    assert not loan[1:].flags.writeable  # made from now on
    reader.recv(SECONDS)
    assert writer.thaw(loan)
    assert sent.flags.writeable


def test_what_its_owner_made_read_only_stays_so(writer: Writer, reader: Reader) -> None:
    loan = writer.empty(MIB, np.uint8)
    view = loan[:]
    view.flags.writeable = False
    writer.send([loan, view])
    reader.recv(SECONDS)
    assert writer.thaw(loan)
    assert loan.flags.writeable
    assert not view.flags.writeable


def test_a_send_that_fails_freezes_nothing(waiting_writer: Writer) -> None:
    writer, reader = waiting_writer, Reader(waiting_writer.handle, 0)
    loan = writer.empty(MIB, np.uint8)
    with pytest.raises(shmcast.EncodeError):
        writer.send([loan, lambda: None])
    assert loan.flags.writeable
    with pytest.raises(shmcast.Timeout):
        writer.send([loan, bytes(2 * ARENA)], 0)
    assert loan.flags.writeable
    with pytest.raises(shmcast.Timeout):
        reader.recv(0)  # what there is of it: room for the next one
    loan[:] = 4
    writer.send(loan, SECONDS)
    assert np.array_equal(reader.recv(SECONDS), filled(MIB, 4))
    reader.close()


def test_thaw_is_true_of_what_this_writer_does_not_freeze(writer: Writer, reader: Reader) -> None:
    with Writer(1, arena_bytes=ARENA) as other:
        for array in (other.empty(10), np.empty(10), torch.empty(10), other.empty_tensor(10)):
            writer.send(array)
            assert writer.thaw(array)
    for thing in ([1, 2], None, b"bytes"):
        with pytest.raises(shmcast.InvalidArgument, match="is no array or tensor"):
            writer.thaw(thing)  # type: ignore[arg-type]


def test_writing_to_a_frozen_tensor_is_warned_of(writer: Writer, reader: Reader) -> None:
    tensor = writer.empty_tensor((2, MIB // 2), torch.uint8)
    tensor.fill_(1)
    writer.send(tensor)
    tensor[1].fill_(2)
    reader.recv(SECONDS)
    with pytest.warns(shmcast.ShmcastWarning, match=r"torch.uint8.*written to after it was sent"):
        assert writer.thaw(tensor)
    writer.send(tensor)
    reader.recv(SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert writer.thaw(tensor)  # told once
        tensor.fill_(3)  # thawed: it may be
        writer.send(tensor)
        reader.recv(SECONDS)
        writer.send("looks, too")
        assert writer.thaw(tensor)


def test_writing_to_a_frozen_tensor_is_warned_of_though_it_was_sent_again(
    writer: Writer, reader: Reader
) -> None:
    tensor = writer.empty_tensor(MIB, torch.uint8)
    writer.send(tensor)
    tensor.fill_(2)
    writer.send(tensor)
    for _ in range(2):
        reader.recv(SECONDS)
    with pytest.warns(shmcast.ShmcastWarning, match="written to after it was sent"):
        assert writer.thaw(tensor)


def test_inference_mode_has_loans_without_the_warning(writer: Writer, reader: Reader) -> None:
    with torch.inference_mode():
        tensor = writer.empty_tensor((2, MIB // 2), torch.uint8).view(-1)
        writer.send(tensor)
        assert not writer.thaw(tensor)
        tensor.fill_(2)
        reader.recv(SECONDS)
        assert writer.thaw(tensor)


@pytest.mark.parametrize(
    "view", [lambda t: t.view(-1), lambda t: t[1:], lambda t: t.detach(), lambda t: t.numpy()]
)
def test_a_view_of_a_tensor_whose_first_name_is_gone_is_still_a_loan(
    writer: Writer, reader: Reader, view: Callable[[torch.Tensor], Any], no_gc: None
) -> None:
    kept = view(writer.empty_tensor((4, LARGE), torch.uint8))
    assert writer.thaw(kept)
    send_uncopied(writer, kept)
    assert not writer.thaw(kept)
    reader.recv(SECONDS)
    assert writer.thaw(kept)
    del kept
    assert is_free(writer)
    assert not writer._end._lender._lent  # type: ignore[union-attr]


# Dropped


@pytest.mark.parametrize("lend", ["empty", "empty_tensor"])
def test_a_loan_that_is_dropped_unsent_is_free_at_once(
    writer: Writer, reader: Reader, lend: str, no_gc: None
) -> None:
    for _ in range(1000):
        loan = getattr(writer, lend)(LARGE)
        del loan
    loan = getattr(writer, lend)(LARGE)
    view = loan[1:][:5]
    del loan
    assert not is_free(writer)
    del view
    check_whole(writer, reader)
    assert writer.statistics().arena_full == 1


@pytest.mark.parametrize("lend", ["empty", "empty_tensor"])
def test_a_loan_that_is_dropped_after_send_is_the_readers(lend: str, no_gc: None) -> None:
    with (
        Writer(2, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0) as one,
        Reader(writer.handle, 1) as two,
    ):
        loan = getattr(writer, lend)(MIB // 4)
        loan[:] = 1.5
        writer.send(loan)
        del loan
        assert not is_free(writer)
        view = one.recv(SECONDS, copy=False)
        two.recv(SECONDS)
        for k in range(10):
            writer.send(filled(MIB, k))
            for reader in (one, two):
                assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, k))
        assert (view == 1.5).all()
        assert not is_free(writer)
        del view
        check_whole(writer, one, two)


def test_a_loan_outlives_its_writer(no_gc: None) -> None:
    writer = Writer(1, arena_bytes=ARENA)
    reader = Reader(writer.handle, 0)
    array, tensor = writer.empty(MIB, np.uint8), writer.empty_tensor(MIB, torch.uint8)
    array[:], tensor[:] = 1, 2
    writer.send(array)
    writer.close()
    for call in (writer.empty, writer.empty_tensor):
        with pytest.raises(shmcast.Closed, match=r"after close\(\)"):
            call(10)
    with pytest.raises(shmcast.Closed, match=r"thaw after close\(\)"):
        writer.thaw(array)
    del writer
    tensor += 1
    assert torch.all(tensor == 3)
    assert np.array_equal(array, filled(MIB, 1))
    assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, 1))
    reader.close()


def test_another_writer_copies_a_loan_and_does_not_freeze_it(
    writer: Writer, reader: Reader, no_gc: None
) -> None:
    with Writer(1, arena_bytes=ARENA) as other, Reader(other.handle, 0) as its_reader:
        array, tensor = writer.empty((2, MIB // 2), np.uint8), writer.empty_tensor(LARGE)
        array[:], tensor[:] = 1, 2
        other.send([array, tensor, array[:, ::-1]])
        assert array.flags.writeable
        assert other.statistics().arena_frames == 3
        array[:], tensor[:] = 3, 4
        got = its_reader.recv(SECONDS, copy=False)
        assert np.all(got[0] == 1)
        assert torch.all(got[1] == 2)
        assert np.all(got[2] == 1)
        assert writer.thaw(array)
        with Writer(1) as plain, Reader(plain.handle, 0) as plain_reader:
            plain.send(tensor[::2])
            assert torch.all(plain_reader.recv(SECONDS) == 4)


def test_loans_may_end_in_another_thread_at_any_time(writer: Writer, reader: Reader) -> None:
    ends: list[Array] = []
    done = threading.Event()

    def end() -> None:
        while not done.is_set():
            ends.clear()

    thread = threading.Thread(target=end)
    thread.start()
    try:
        for k in range(1500):
            ends.append(writer.empty(PAGE, np.uint8))
            ends.append(writer.empty(PAGE, np.uint8))
            writer.send(k)
            assert reader.recv(SECONDS) == k
    finally:
        done.set()
        thread.join()
    ends.clear()
    check_whole(writer, reader)


def test_more_than_one_thread_in_a_writer_is_told(writer: Writer) -> None:
    with Reader(writer.handle, 0):
        sender = threading.Thread(target=send_until_closed, args=(writer,))
        sender.start()
        with pytest.raises(shmcast.ConcurrentUse):
            lend_for_ever(writer)
        writer.close()
        sender.join()


def lend_for_ever(writer: Writer) -> None:
    while True:
        writer.empty(PAGE, np.uint8)


def send_until_closed(writer: Writer) -> None:
    with pytest.raises(shmcast.Closed):  # noqa: PT012 (until then)
        while True:
            with contextlib.suppress(shmcast.ConcurrentUse):  # the other thread was the first
                writer.send(bytes(2 * ARENA))
