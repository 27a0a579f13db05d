"""Who the members of a segment are, and whether they live, as their seats and locks tell."""

from __future__ import annotations

from shmcast import _core
from shmcast._host.places import Places
from shmcast._host.process import is_alive, own_start_time, pid_namespace

LIVING = ("attached", "claimed", "rejoining")
"""States of a seat whose owner should be alive."""

_MOST_PID = 4 * 1024 * 1024  # PID_MAX_LIMIT of the kernel


def identity(lock: _core.LifeLock | None) -> _core.Identity:
    """Return who this process is, for its peers."""
    return _core.Identity(own_start_time(), pid_namespace(), lock is not None)


def is_written(peer: _core.Peer) -> bool:
    """Return whether a member has told who it is, which it does once its seat is taken."""
    return peer.state != "claimed" and peer.start_time != 0


def has_ended(peer: _core.Peer, places: Places) -> bool:
    """Return whether a member's process has ended, as far as can be seen from here.

    Args:
        peer: the member.
        places: of its segment.

    Raises:
        SegmentCorrupted: it is nobody's pid.
    """
    check_pid(peer)
    if not is_written(peer):
        return not places.is_held(peer.index) and not is_alive(peer.pid)
    if peer.state in LIVING and peer.holds_lock:
        is_held = places.is_held(peer.index)
        if is_held is not None:  # the kernel's own word, whatever namespace it is in
            return not is_held
    return peer.pid_namespace == pid_namespace() and not is_alive(peer.pid, peer.start_time)


def never_came(peer: _core.Peer) -> bool:
    """Return whether nobody has had a seat: also one that the writer has dropped all the same."""
    return peer.state == "vacant" or (peer.state == "dropped" and not peer.pid)


def check_pid(peer: _core.Peer) -> None:
    """Raise SegmentCorrupted if a member's pid is nobody's."""
    if not 0 < peer.pid <= _MOST_PID:
        raise _core.SegmentCorrupted(f"member {peer.index} has pid {peer.pid}")
