"""Fuzzes the default codec, as a program of its own that needs nothing but Python and shmcast.

    python -m tests.support.codec_fuzz graphs|mutations FIRST COUNT
    python -m tests.support.codec_fuzz all COUNT            # make fuzz

`graphs` holds objects made at random against pickle. `mutations` decodes damaged messages, also out
of a ring's slots, which may give any value or error, but no crash, and must not change what later
messages become. `all`
runs both in processes of `CHUNK` seeds each, and names the seed at which one of them dies.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shmcast import ObjectCodec, Reader
from shmcast._codecs.base import Received
from shmcast._endpoints.frame_writer import FrameWriter
from tests.support import object_graphs, zoo_objects
from tests.support.canonical import canonical
from tests.support.differential import by_pickle, difference, outcome, sent, through

OURS = 0xF5
"""The first byte of a message that is no pickle."""

CHUNK = 20_000
ADDRESS_SPACE_BYTES = 4 << 30
MEMORY_BYTES = 1 << 29
"""More than a process needs: a damaged count must not be believed."""

_SECONDS = 600
_HELD = 30
_CHECK_EVERY = 16


class Different(AssertionError):
    """A codec gave something else than pickle."""


def graphs(first: int, count: int, say: Callable[[int], object] = lambda _seed: None) -> None:
    """Send the objects of seeds by codecs with a past, without one, later, twice, and not at all.

    Raises:
        Different: something else arrived than by pickle; names the seed.
    """
    encoder, decoder = ObjectCodec(), ObjectCodec()
    chance = random.Random(first)  # noqa: S311 (the same for each seed)
    held: list[tuple[int, Any, list[bytearray]]] = []
    for seed in range(first, first + count):
        say(seed)
        obj = object_graphs.make(seed)
        expected = outcome(by_pickle, obj)
        for codec in (decoder, ObjectCodec()):
            got = outcome(lambda obj, to=codec: to.decode(sent(encoder, obj)), obj)
            _check(seed, expected, got)
        if chance.randrange(4) == 0:
            practise(encoder, decoder)
        if chance.randrange(4) == 0 and expected[0] == "value":
            held.append((seed, expected, sent(encoder, obj)))  # (some are never decoded)
        if held and chance.randrange(4) == 0:
            at = chance.randrange(len(held))
            old, expected, frames = held[at]
            got = outcome(decoder.decode, [*map(bytearray, frames)])
            _check(old, expected, got)
            del held[at : at + chance.randrange(2)]
            del held[:-_HELD]


def practise(encoder: ObjectCodec, decoder: ObjectCodec) -> None:
    """Do what ends do between messages: encode and decode the last one once more."""
    encoder.practise_encode(None)
    frames = decoder.practice_frames()
    if frames is not None:
        decoder.practise_decode(frames)


def _check(seed: int, expected: tuple[str, Any], got: tuple[str, Any]) -> None:
    if got != expected:
        raise Different(f"seed {seed}:\n{difference(expected, got)}")


def mutations(first: int, count: int, say: Callable[[int], object] = lambda _seed: None) -> None:
    """Decode damaged messages, by a decoder that goes on to decode others.

    Raises:
        Different: a message that is whole became something else after a damaged one.
    """
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # (that reserves terabytes)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))
    codec = ObjectCodec()
    messages = _messages(codec, first)
    # (Without a spill, which reserves address space.)
    writer = FrameWriter(1, spill_bytes=0)
    reader = Reader(writer.handle, 0, codec=codec)
    for seed in range(first, first + count):
        say(seed)
        chance = random.Random(seed)  # noqa: S311
        obj, frames = chance.choice(messages)
        damaged: list[Received] = [
            damage(chance, bytearray(frames[0])),
            *map(bytearray, frames[1:]),
        ]
        by = codec if chance.randrange(4) else ObjectCodec()
        try:
            if by is codec and len(damaged) == 1 and chance.randrange(2):
                writer.publish(damaged, 0)
                reader.recv(0)
            else:
                by.decode(damaged)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: S110 (even SystemExit: a damaged name may be any function's)
            pass
        if seed % _CHECK_EVERY == 0:
            _check(
                seed,
                ("value", canonical(by_pickle(obj))),
                outcome(lambda o: through(codec, o), obj),
            )
    peak = peak_bytes()
    if peak > MEMORY_BYTES and "LD_PRELOAD" not in os.environ:
        raise MemoryError(f"{peak >> 20} MiB")


def _messages(codec: ObjectCodec, first: int) -> list[tuple[Any, list[bytearray]]]:
    """Return objects and their messages, those that pickle writes left out."""
    objects = [make() for name, make in zoo_objects.CASES.items() if "long" not in name]
    objects += [object_graphs.make(seed) for seed in range(first, first + 200)]
    encoded = [(obj, sent(codec, obj)) for obj in objects]
    ours = [(obj, frames) for obj, frames in encoded if frames[0][0] == OURS]
    return ours or encoded


def damage(chance: random.Random, message: bytearray) -> bytearray:
    """Change a message in one to four places, but not its first byte."""
    for _ in range(chance.randint(1, 4)):
        if len(message) < 3:
            break
        at = chance.randrange(1, len(message))
        length = chance.choice((1, 1, 2, 4, 8, 30))
        match chance.randrange(8):
            case 0:
                message[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 1 | 2:
                message[at] ^= 1 << chance.randrange(8)
            case 3:
                del message[at : at + length]
            case 4:
                message[at:at] = chance.randbytes(length)
            case 5:
                other = chance.randrange(1, len(message))
                message[at : at + length] = message[other : other + length]
            case 6:
                del message[at:]
            case _:
                message[at] = (message[at] + chance.choice((1, -1))) & 0xFF
    return message


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    # (Not ru_maxrss: a process inherits that from whoever has started it.)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


WAYS: dict[str, Callable[..., None]] = {"graphs": graphs, "mutations": mutations}


def run_all(count: int) -> int:
    """Run both, in processes; return a status."""
    began = time.monotonic()
    chunks = [(way, at) for way in WAYS for at in range(0, count, CHUNK)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        failed = [
            line
            for line in pool.map(lambda c: _chunk(c[0], c[1], min(CHUNK, count)), chunks)
            if line
        ]
    version = sys.version.split()[0]
    took = time.monotonic() - began
    print(  # noqa: T201
        f"Python {version}: {count:,} graphs and {count:,} mutated messages in {took:.0f} s: "
        f"{len(failed)} of {len(chunks)} processes failed"
    )
    for line in failed:
        print(line)  # noqa: T201
    return bool(failed)


def _chunk(way: str, first: int, count: int) -> str:
    ran = _run(way, first, count)
    if ran.returncode == 0:
        return ""
    if ran.returncode < 0:  # once more, to see how far it comes
        ran = _run(way, first, count, "each")
    tail = ran.stdout[-3000:].decode(errors="replace")
    return f"{way} {first} {count}: exit status {ran.returncode}: {tail}"


def _run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "tests.support.codec_fuzz", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def main(way: str, *arguments: str) -> int:
    """Do what the command line asks for; return a status."""
    if way == "all":
        return run_all(int(arguments[0]))
    faulthandler.enable()
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    first, count = map(int, arguments[:2])
    is_told = arguments[2:] == ("each",)
    WAYS[way](first, count, lambda seed: print("seed", seed, flush=True) if is_told else None)  # noqa: T201
    print(f"{count} {way}, {peak_bytes() >> 20} MiB")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
