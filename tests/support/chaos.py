"""Chaos: members of a ring end in every way, are stopped, slowed and replaced; all is checked.

They are killed, crash with a core, end by an exception or an exit code, or execute another program,
all at random, while messages flow or while few do, and are reaped by this process rather than by
their peers. In some members a signal's handler raises in every call.

    python -m tests.support.chaos --rounds 1000
    python -m tests.support.chaos --seconds 3600            # make chaos; make chaos ROUNDS=1000

A round has one writer and 1 to 7 readers, each a process, with a small ring, a small spill and
perhaps a small arena, wait policies and a policy for dead readers by lot. Readers keep views of
large messages for a while. Some receive in an event loop, by tasks of which many are cancelled.

Every other round has a hub and its members, which answer each message: the hub checks each reply,
of which none may be missing but those of the dead. Calls of both are ended by `interrupt`.

Every message can be made again from its number: a reader compares each byte. What must hold at a
round's end:

- Survivors have got consecutive messages, from the first one on; a replacement from its first one
  on. (A recv that a signal's handler has ended may have lost the message that it had, as a queue's
  get may: at most one for each such call, and these are counted.) After an orderly end that is up
  to the last message sent; after the writer's death, all survivors have the same last message.
- No view has changed while it was kept. After an orderly end, the whole arena is free again.
- Nobody waits on after its cause: every member ends by itself, with the error that it should have.
- No segment is left in /dev/shm, once `shmcast._host.shared_memory.clean` has looked at it.

A failure prints its seed: the plan of a round is made from it, though not the timing.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from shmcast import WaitPolicy
from tests.support.chaos_hub_roles import answer, drive
from tests.support.chaos_roles import (
    ENDINGS,
    HANG_SECONDS,
    Report,
    Role,
    RoundFailed,
    read,
    serve,
    write,
)

_context = multiprocessing.get_context("spawn")

_AGAIN_SECONDS = 2.0
"""A member that was told to end, and has not, is told again."""


class Member:
    """A process that plays a role, or waits for one."""

    def __init__(self, folder: str) -> None:
        self.connection, theirs = _context.Pipe()
        self.process = _context.Process(target=serve, args=(theirs, folder), daemon=True)
        self.process.start()
        theirs.close()

    def play(self, role: Callable[..., Report], *args: Any) -> None:
        self.connection.send((role, args))

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def answer(self, what: str) -> Any:
        if not self.connection.poll(HANG_SECONDS):
            raise RoundFailed(f"{what}: no answer in {HANG_SECONDS:g} s")
        answer = self.connection.recv()
        if isinstance(answer, Report) and answer.wrong:
            raise RoundFailed(f"{what}: {answer.wrong}")
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@dataclass
class Tally:
    """What all rounds together have seen."""

    rounds: int = 0
    messages: int = 0
    deaths: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    replacements: int = 0
    stops: int = 0
    alarms: int = 0
    """Calls in which a signal's handler has raised."""
    lost: int = 0
    """Messages between such a recv and its caller."""
    spilled: int = 0
    """Messages of which a busy reader had a part beside the ring."""
    cancels: int = 0
    """Tasks that were cancelled while they awaited a message or a reply."""
    interrupts: int = 0
    """Calls that `interrupt` has ended."""
    delays_ms: list[float] = field(default_factory=list)
    """From a death, or the begin of the wait that it ended, to that wait's end."""


class Chaos:
    """Plays rounds."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._idle: list[Member] = []
        self._folder = tempfile.TemporaryDirectory(prefix="shmcast-chaos-")

    def close(self) -> None:
        """End all processes."""
        for member in self._idle:
            member.end()
        self._folder.cleanup()

    def _member(self) -> Member:
        return self._idle.pop() if self._idle else Member(self._folder.name)

    def round(self, seed: int) -> None:
        """Play one round.

        Raises:
            RoundFailed: something that must hold did not.
        """
        try:
            kind = _HubRound if seed % 2 else _Round
            kind(self, seed).play()
        except RoundFailed as error:
            raise RoundFailed(f"round of seed {seed}: {error}") from error
        self.tally.rounds += 1


class _Round:
    _writes: Callable[..., Report] = staticmethod(write)
    _reads: Callable[..., Report] = staticmethod(read)

    def __init__(self, chaos: Chaos, seed: int) -> None:
        self._chaos = chaos
        self._tally = chaos.tally
        self._seed = seed
        self._rng = random.Random(seed)  # noqa: S311
        self._count = self._rng.randint(1, 7)
        self._drops = self._rng.random() < 0.5
        self._pace = self._rng.choice((0.0, 0.0, 0.05))
        self._replaced: set[int] = set()
        self._death_ns = 0  # the first that must end the round
        self._stopped: set[Member] = set()

    def _role(self) -> Role:
        policies = [WaitPolicy.adaptive(), WaitPolicy.semaphore(), WaitPolicy.spin()]
        policy = self._rng.choices(policies, (6, 3, 1))[0]
        slow = self._rng.choice((0.0, 0.001, 0.02))
        alarmed, arena = self._rng.random() < 0.2, self._rng.random() < 0.5
        awaits = not alarmed and self._rng.random() < 0.5
        return Role(self._seed, policy, slow, self._pace, alarmed, arena, awaits)

    def play(self) -> None:
        take = self._chaos._member
        self._writer = take()
        self._readers = [take() for _ in range(self._count)]
        everybody = [self._writer, *self._readers]
        try:
            on_death = "drop" if self._drops else "raise"
            self._writer.play(self._writes, self._role(), self._count, on_death)
            self._handle = self._writer.answer("the writer's handle")
            for index, reader in enumerate(self._readers):
                reader.play(self._reads, self._role(), self._handle, index, False)
            # Who dies before it attaches was never there: nobody can know that it should have been.
            for index, reader in enumerate(self._readers):
                reader.answer(f"reader {index}'s attachment")
            is_writer_dead = self._torment()
            for member in self._stopped:
                member.signal(signal.SIGCONT)
            self._judge(is_writer_dead)
        finally:
            everybody = [self._writer, *self._readers]
            for member in everybody:
                if member in self._chaos._idle:
                    continue
                member.end()

    def _torment(self) -> bool:
        """Do things to the members; return whether the writer was killed at last."""
        rng = self._rng
        for _ in range(rng.randint(0, 5)):
            time.sleep(rng.choice((0.0, 0.002, 0.02, 0.1)))
            index = rng.randrange(self._count)
            match rng.choice(("stop", "continue", "kill", "replace")):
                case "stop":
                    member = rng.choice([self._writer, *self._readers])
                    member.signal(signal.SIGSTOP)
                    self._stopped.add(member)
                    self._tally.stops += 1
                case "continue":
                    while self._stopped:
                        self._stopped.pop().signal(signal.SIGCONT)
                case "kill" if not self._drops:
                    self._kill(self._readers[index])
                    return False
                case "replace" if self._drops:
                    self._replace(index)
                case _:
                    pass
        if rng.random() < 0.3:
            self._kill(self._writer)
            return True
        return False

    def _kill(self, member: Member) -> None:
        self._death_ns = self._death_ns or time.monotonic_ns()
        ending = self._rng.choice([*ENDINGS])
        give_up = time.monotonic() + HANG_SECONDS
        while member.process.exitcode is None and time.monotonic() < give_up:
            # (Again, if need be: an alarm's handler may raise at the first step of this signal's.)
            member.signal(ENDINGS[ending])
            member.signal(signal.SIGCONT)  # it may be stopped
            member.process.join(_AGAIN_SECONDS)
        if member.process.exitcode is None:
            raise RoundFailed(f"a member that was told to end did not: {ending}")
        self._tally.deaths += 1
        self._tally.endings[ending] += 1
        self._stopped.discard(member)

    def _replace(self, index: int) -> None:
        """Kill a reader; another process takes its place."""
        if index == 0:
            return  # somebody survives, so that the writer goes on
        death_ns, self._death_ns = self._death_ns, 1
        self._kill(self._readers[index])
        self._death_ns = death_ns
        self._readers[index].end()
        self._readers[index] = self._chaos._member()
        self._readers[index].play(self._reads, self._role(), self._handle, index, True)
        self._readers[index].answer(f"the attachment of a new reader {index}")
        self._replaced.add(index)
        self._tally.replacements += 1

    def _judge(self, is_writer_dead: bool) -> None:
        dead = [m for m in (self._writer, *self._readers) if not m.process.is_alive()]
        if not dead:
            self._writer.connection.send("end")
        reports = {}
        for index, reader in enumerate(self._readers):
            if reader not in dead:
                reports[index] = self._end(reader, f"reader {index}")
        written = None if is_writer_dead else self._end(self._writer, "the writer")
        expected = {"Closed"} if not dead else {"PeerDied", "Closed"}
        for index, report in reports.items():
            who = f"reader {index} of {self._count}, {'drop' if self._drops else 'raise'}"
            alarmed = report.alarms  # (then the last message may be one that was lost)
            if report.error not in expected:
                raise RoundFailed(f"{who} ended in {report.error}, not in {expected}")
            if index not in self._replaced and report.first not in (0, None) and not alarmed:
                raise RoundFailed(f"{who} began with message {report.first}")
            if not dead and written and report.last not in (written.last, None) and not alarmed:
                raise RoundFailed(f"{who} has {report.last}, sent was {written.last}")
        if is_writer_dead:
            lasts = {
                report.last
                for i, report in reports.items()
                if i not in self._replaced and not report.alarms
            }
            if len(lasts) > 1:
                raise RoundFailed(f"the readers of a dead writer ended at messages {lasts}")
        if not dead and written and written.error:
            raise RoundFailed(f"the writer ended in {written.error}")

    def _end(self, member: Member, who: str) -> Report:
        report: Report = member.answer(f"{who} ({'drop' if self._drops else 'raise'})")
        self._chaos._idle.append(member)
        self._tally.messages += 1 + (report.last or 0) - (report.first or 0)
        self._tally.alarms += report.alarms
        self._tally.lost += report.lost
        self._tally.spilled += report.spilled
        self._tally.cancels += report.cancels
        self._tally.interrupts += report.interrupts
        if self._death_ns and report.error == "PeerDied":
            since = max(self._death_ns, report.waited_from_ns)
            self._tally.delays_ms.append((report.ended_ns - since) / 1e6)
        return report


class _HubRound(_Round):
    """Both directions: a hub in the place of the writer, members in that of the readers."""

    _writes = staticmethod(drive)
    _reads = staticmethod(answer)


def main(
    seconds: Annotated[float, typer.Option(help="how long")] = 60.0,
    rounds: Annotated[int, typer.Option(help="how many; 0: as many as there is time for")] = 0,
    seed: Annotated[int, typer.Option(help="of the first round")] = 1,
) -> None:
    """Play rounds, and print what they have seen. Status 1 at the first failure."""
    before = set(Path("/dev/shm").glob("shmcast-*"))
    chaos, began = Chaos(), time.monotonic()
    try:
        while chaos.tally.rounds < rounds if rounds else time.monotonic() < began + seconds:
            chaos.round(seed + chaos.tally.rounds)
    except RoundFailed as error:
        sys.exit(str(error))
    finally:
        chaos.close()
    tally = chaos.tally
    print(  # noqa: T201
        f"{tally.rounds} rounds in {time.monotonic() - began:.0f} s, seeds from {seed}: "
        f"{tally.messages:,} messages received, {tally.spilled:,} spilled, {tally.deaths} deaths, "
        f"{tally.replacements} replacements, {tally.stops} stops; no hang, no message lost, "
        f"doubled or changed; a signal's handler has raised in {tally.alarms:,} calls, which lost "
        f"{tally.lost} messages; {tally.cancels:,} tasks were cancelled and {tally.interrupts:,} "
        "calls interrupted, which lost none"
    )
    print(", ".join(f"{count} x {ending}" for ending, count in tally.endings.items()))  # noqa: T201
    if tally.delays_ms:
        ordered = sorted(tally.delays_ms)
        print(  # noqa: T201
            f"a death ended {len(ordered)} waits: after {statistics.median(ordered):.1f} ms in the "
            f"median, {ordered[int(0.99 * len(ordered))]:.1f} ms at p99, {ordered[-1]:.1f} ms at "
            "most"
        )
    left = set(Path("/dev/shm").glob("shmcast-*")) - before
    print(f"{len(left)} segments left in /dev/shm")  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
