"""The segment: private, reserved, checked field by field, gone as soon as it can be."""

from __future__ import annotations

import dataclasses
import functools
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmcast
from shmcast import Handle, Reader, Writer
from shmcast._endpoints.handle import geometry_of
from shmcast._host import shared_memory

SHM = Path("/dev/shm")
MIB = 1 << 20


def path_of(handle: Handle) -> Path:
    return SHM / handle.name[1:]


@pytest.mark.parametrize("spill_bytes", [0, MIB, 1024 * MIB])
def test_a_segment_is_private_and_its_pages_are_reserved(spill_bytes: int) -> None:
    with Writer(1, spill_bytes=spill_bytes) as writer:
        status, ring = path_of(writer.handle).stat(), geometry_of(writer.handle).segment_bytes
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert 0 <= status.st_blocks * 512 - ring < 4096  # and nothing for the spill
        assert ring > 64 * 65536
        assert status.st_size == (ring if spill_bytes == 0 else 6 * MIB + spill_bytes)


def test_the_mode_does_not_depend_on_the_umask() -> None:
    before = os.umask(0o277)
    try:
        with Writer(1) as writer:
            assert stat.S_IMODE(path_of(writer.handle).stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_the_name_is_gone_as_soon_as_all_have_attached() -> None:
    with Writer(2) as writer, Reader(writer.handle, 0):
        assert path_of(writer.handle).exists()
        with Reader(writer.handle, 1) as last:
            assert not path_of(writer.handle).exists()
            writer.send("still works")
            assert last.recv() == "still works"


def test_the_name_is_gone_when_the_writer_closes_early() -> None:
    writer = Writer(2)
    writer.close()
    with pytest.raises(shmcast.SegmentNotFound, match="run on the node of the process that made"):
        Reader(writer.handle, 0)


def test_a_full_shared_memory_is_an_error_at_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    room = os.statvfs(SHM)
    slot_bytes = 2**30
    slots = 2 ** max(1, (room.f_blocks * room.f_frsize // slot_bytes).bit_length())
    monkeypatch.delattr(os, "posix_fallocate")  # nothing is taken from others to find out
    with pytest.raises(shmcast.SharedMemoryFull) as caught:
        Writer(1, slots=slots, slot_bytes=slot_bytes)
    text = str(caught.value)
    assert str(slots * slot_bytes)[:3] in text
    assert "free of" in text
    assert "--shm-size" in text


def test_a_second_reader_of_one_index_is_refused() -> None:
    with Writer(2) as writer:
        taken = pytest.raises(shmcast.AlreadyAttached, match=f"index 0.*process {os.getpid()}")
        with Reader(writer.handle, 0), taken:
            Reader(writer.handle, 0)
        with pytest.raises(shmcast.AlreadyAttached, match="was taken, and left"):
            Reader(writer.handle, 0)


# Offsets of the header's fields, in bytes, and what an error calls them.
HEADER = {
    "magic number": 0,
    "layout version": 9,
    "reader count": 12,
    "slot count": 16,
    "slot capacity": 24,
    "slot stride": 32,
    "size in bytes": 40,
    "extent count": 48,
    "spill's size": 56,
    "nonce": 64,
    "writer pid": 96,
}


@pytest.mark.parametrize(("field", "offset"), HEADER.items())
def test_every_header_field_is_checked_on_attach(field: str, offset: int) -> None:
    with Writer(2) as writer, path_of(writer.handle).open("r+b") as file:
        with mmap.mmap(file.fileno(), 0) as memory:
            before = memory[offset : offset + 4]
            memory[offset : offset + 4] = bytes(4) if field == "writer pid" else b"\x99" * 4
            with pytest.raises(shmcast.SegmentMismatch, match=field):
                Reader(writer.handle, 0)
            memory[offset : offset + 4] = before
        Reader(writer.handle, 0).close()


def test_a_truncated_segment_is_refused() -> None:
    with Writer(2) as writer:
        os.truncate(path_of(writer.handle), 4096)
        with pytest.raises(shmcast.SegmentMismatch, match="size in bytes 4096"):
            Reader(writer.handle, 0)


def test_a_segment_that_others_could_open_is_refused() -> None:
    with Writer(2) as writer:
        path_of(writer.handle).chmod(0o644)
        with pytest.raises(shmcast.SegmentMismatch, match="mode -rw-r--r--, expected -rw-------"):
            Reader(writer.handle, 0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_another_users_segment_is_refused() -> None:
    with Writer(2) as writer:
        os.chown(path_of(writer.handle), 1, -1)
        with pytest.raises(shmcast.SegmentMismatch, match="owner uid 1, expected 0"):
            Reader(writer.handle, 0)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.symlink_to("/proc/self/status"), "is not a file"),
        (lambda path: path.mkdir(), "is not a file"),
        (os.mkfifo, "has mode p"),
    ],
    ids=["a symbolic link", "a folder", "a pipe"],
)
def test_what_is_no_file_is_refused(make: Callable[[Path], None], told: str) -> None:
    with Writer(2) as writer:
        path = path_of(writer.handle)
        aside = path.rename(path.with_suffix(".aside"))
        make(path)
        try:
            with pytest.raises(shmcast.SegmentMismatch, match=told):
                Reader(writer.handle, 0)
        finally:
            path.rmdir() if stat.S_ISDIR(path.lstat().st_mode) else path.unlink()
            aside.rename(path)


@pytest.mark.parametrize(
    "wrong", [{"readers": 5000}, {"slots": 0}, {"slots": 48}, {"slot_bytes": 0}], ids=str
)
def test_a_handle_of_no_possible_shape_is_refused(wrong: dict[str, Any]) -> None:
    with Writer(2) as writer, pytest.raises(shmcast.InvalidArgument, match=next(iter(wrong))):
        Reader(dataclasses.replace(writer.handle, **wrong), 0)


def test_a_handle_that_speaks_of_another_shape_is_refused() -> None:
    with Writer(2, slots=4, slot_bytes=1024) as writer:
        handle = writer.handle
        for other in (
            dataclasses.replace(handle, slots=2),
            dataclasses.replace(handle, spill_bytes=0),
            dataclasses.replace(handle, spill_bytes=handle.spill_bytes + 4096),
        ):
            with pytest.raises(shmcast.SegmentMismatch, match=r"size in bytes|slot count"):
                Reader(other, 0)


def test_a_failed_set_up_leaves_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, size: int) -> mmap.mmap:
        raise MemoryError

    monkeypatch.setattr(shared_memory, "_map", fail)
    with pytest.raises(MemoryError):
        Writer(1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"readers": 0}, "readers=0"),
        ({"readers": -3}, "readers=-3"),
        ({"readers": 5000}, "readers=5000"),
        ({"readers": True}, "readers=True"),
        ({"readers": 1, "slots": 48}, "slots=48 is not a power of two"),
        ({"readers": 1, "slots": 1}, "slots=1"),
        ({"readers": 1, "slot_bytes": 100}, "slot_bytes=100"),
        ({"readers": 1, "slot_bytes": 200}, "slot_bytes=200 is not a multiple of 128"),
        ({"readers": 1, "wait": "spin"}, "wait='spin' is not a WaitPolicy"),
        ({"readers": 1, "codec": 5}, r"codec=5 has no method encode\(\)"),
    ],
)
def test_bad_arguments_are_refused_by_value(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(shmcast.InvalidArgument, match=named):
        Writer(**arguments)


@pytest.mark.parametrize("index", [-1, 2, 1.5, "0"])
def test_a_wrong_index_is_refused_by_value(index: int) -> None:
    expected = pytest.raises(shmcast.InvalidArgument, match=rf"index={index!r}.*from 0 to 1")
    with Writer(2) as writer, expected:
        Reader(writer.handle, index)


def test_something_else_than_a_handle_is_refused() -> None:
    with Writer(1) as writer, pytest.raises(shmcast.InvalidArgument, match=r"writer\.handle"):
        Reader(writer, 0)  # type: ignore[arg-type]


def test_a_slot_that_no_writer_wrote_is_found() -> None:
    with Writer(1, slots=2, slot_bytes=128) as writer:
        name = path_of(writer.handle)
        with name.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            reader = Reader(writer.handle, 0)
            slots = geometry_of(writer.handle).segment_bytes - 2 * 384
            writer.send([b"x" * 60])
            # Two frames whose table would be larger than the message.
            memory[slots + 8 : slots + 16] = (1 << 63 | 2 << 40 | 5).to_bytes(8, "little")
            with pytest.raises(shmcast.SegmentCorrupted, match="fits no message"):
                reader.recv(1)
            reader.close()


# Where a word lies in a segment for two readers with 2 slots of 128 bytes, and what it is not.
MEMBERS, SLOTS = 640, 6272
SEAT = MEMBERS + 128 + 8  # of reader 1
WRONG_WORDS = {
    "a seat is in no state": (SEAT, 7 << 32 | 9, "a seat's state is 9"),
    "a seat is nobody's": (SEAT, (2**31 + 5) << 32 | 1, "member 1 has pid 2147483653"),
    "a reader is ahead of the writer": (MEMBERS, 4, "is 4, which does not fit the writer's, 2"),
    "a reader is behind the ring": (MEMBERS + 128, 2**64 - 2, "does not fit the writer's, 2"),
    "a slot is ahead of the writer": (
        SLOTS,
        5,
        "a slot's number is 5, which does not fit the one awaited, 1",
    ),
}


@pytest.mark.parametrize(("offset", "word", "told"), WRONG_WORDS.values(), ids=WRONG_WORDS)
def test_what_nobody_can_have_written_ends_a_wait(offset: int, word: int, told: str) -> None:
    with Writer(2, slots=2, slot_bytes=128) as writer:
        file = path_of(writer.handle).open("r+b")
        with file, mmap.mmap(file.fileno(), 0) as memory, Reader(writer.handle, 0) as reader:
            assert geometry_of(writer.handle).segment_bytes == SLOTS + 2 * 384
            if offset in (MEMBERS, MEMBERS + 128):
                for k in range(2):
                    writer.send(k)
            memory[offset : offset + 8] = word.to_bytes(8, "little")
            wait = {SEAT: reader.wait_ready, SLOTS: reader.recv}
            with pytest.raises(shmcast.SegmentCorrupted, match=told):
                wait.get(offset, functools.partial(writer.send, "no room"))()
