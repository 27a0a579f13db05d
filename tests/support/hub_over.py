"""Hubs and members over an all-gather, on hosts that are simulated or real."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import shmcast
from shmcast import Hub, Member
from tests.support.exchanges import StoreExchange, file_store
from tests.support.fake_nodes import on_host
from tests.support.hub_roles import SECONDS, answer

Spoil = Callable[[int, list[bytes]], Any]


def hub_over(rank: int, hosts: tuple[str, ...], path: str, **options: Any) -> Hub:
    """Make a hub of ranks that are on these hosts."""
    with on_host(hosts[rank]):
        exchange = StoreExchange(file_store(path), rank, len(hosts))
        return Hub.over(rank, len(hosts), exchange, **options)


def member_over(
    rank: int, hosts: tuple[str, ...], path: str, spoil: Spoil | None = None, **options: Any
) -> Member:
    """Become a member of it."""
    with on_host(hosts[rank]):
        exchange = StoreExchange(file_store(path), rank, len(hosts), spoil)
        return Member.over(rank, len(hosts), exchange, **options)


def echo(rank: int, hosts: tuple[str, ...], path: str, hub_rank: int = 0) -> tuple[int, str, str]:
    """Answer every message; return how many there were, and the error at the end."""
    with member_over(rank, hosts, path) as member:
        return echo_to_the_end(member, rank - (rank > hub_rank))


def echo_to_the_end(member: Member, index: int) -> tuple[int, str, str]:
    """Answer every message; return how many there were, and the error at the end."""
    count = 0
    try:
        while True:
            member.reply(answer(member.recv(SECONDS), index), SECONDS)
            count += 1
    except shmcast.ShmcastError as error:
        return count, type(error).__name__, str(error)


def echo_and_end(
    rank: int, hosts: tuple[str, ...], path: str, count: int, how: str
) -> tuple[int, str, str] | None:
    """Answer so many messages, and on the next one be "killed" or "collected".

    Or at once be "closed", or answer "all".
    """
    if how == "all":
        return echo(rank, hosts, path)
    member = member_over(rank, hosts, path)
    for _ in range(count):
        member.reply(answer(member.recv(SECONDS), rank - 1), SECONDS)
    if how != "closed":
        member.recv(SECONDS)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "closed":
        member.close()
    del member
    return None
