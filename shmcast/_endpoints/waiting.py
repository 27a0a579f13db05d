"""`WaitPolicy`: how to wait, as data."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from shmcast import _core
from shmcast._endpoints import settings
from shmcast._endpoints.arguments import check_seconds
from shmcast.errors import InvalidArgument

DEFAULT_MAX_SPIN = 0.025
"""Seconds; a bound for the worst case: adaptive waiting rarely spins for so long."""

ENVIRONMENT_VARIABLE = "SHMCAST_WAIT"
"""Overrides every policy that a program chose: "spin", "semaphore" or "adaptive"."""

_FOREVER_NS = 2**63 - 1


class _Mode(enum.Enum):
    SPIN = "spin"
    SEMAPHORE = "semaphore"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """What an endpoint does while it waits: look in a loop (spin), or sleep until woken (park).

    Make one with `spin()`, `semaphore()` or `adaptive()`. It never changes what is delivered, only
    how soon and for how much CPU time. Readers of one writer may have different policies.
    """

    _mode: _Mode
    _max_spin: float

    @classmethod
    def spin(cls) -> WaitPolicy:
        """Never park: the lowest latency, one core at 100 % per waiting member.

        With fewer free cores than members this starves whoever has work to do.
        """
        return cls(_Mode.SPIN, math.inf)

    @classmethod
    def semaphore(cls) -> WaitPolicy:
        """Park at once: no CPU time while waiting, one wake-up (tens of µs) for each wait."""
        return cls(_Mode.SEMAPHORE, 0.0)

    @classmethod
    def adaptive(cls, max_spin: float = DEFAULT_MAX_SPIN) -> WaitPolicy:
        """Learn the gaps between messages and be awake in time; the default.

        Messages that come within half a millisecond are spun for. For steady gaps (a decode loop)
        the endpoint sleeps through most of the gap and spins from shortly before the next message
        is due. For gaps that can't be foretold, or after a pause, it is parked until woken. At
        most about a quarter of long gaps is spent spinning.

        It never spins where the members of its writer outnumber the CPUs that they may run on:
        there, a spinner takes the core of the member that it waits for. Nor on the CPU where that
        member was seen last; nor, for some messages, after its core was taken away.

        Args:
            max_spin: at most so many seconds of spinning in one wait; inf: no limit.

        Raises:
            InvalidArgument: `max_spin` is negative or not a number.
        """
        seconds = check_seconds("max_spin", max_spin, "")
        if seconds is None:
            raise InvalidArgument("max_spin=None must be a number of seconds >= 0")
        return cls(_Mode.ADAPTIVE, seconds)

    @classmethod
    def from_environment(cls) -> WaitPolicy | None:
        """Return the policy that the operator has set in SHMCAST_WAIT; None: none.

        Raises:
            InvalidArgument: it is set to something else than a policy's name.
        """
        policies = {"spin": cls.spin, "semaphore": cls.semaphore, "adaptive": cls.adaptive}
        return settings.choice(ENVIRONMENT_VARIABLE, policies)

    def __str__(self) -> str:
        limit = f"(max_spin={self._max_spin:g})" if self._mode is _Mode.ADAPTIVE else "()"
        return f"WaitPolicy.{self._mode.value}{limit}"


def chosen_policy(wait: WaitPolicy | None, label: str) -> WaitPolicy:
    """Return the operator's policy, else the program's, else the default.

    Raises:
        InvalidArgument: either is no policy.
    """
    override = WaitPolicy.from_environment()
    return override or checked_policy(WaitPolicy.adaptive() if wait is None else wait, label)


def checked_policy(wait: object, label: str) -> WaitPolicy:
    """Return a policy.

    Raises:
        InvalidArgument: it is none.
    """
    if not isinstance(wait, WaitPolicy):
        raise InvalidArgument(
            f"{label}: wait={wait!r} is not a WaitPolicy; use WaitPolicy.adaptive(), .spin() "
            "or .semaphore()"
        )
    return wait


def core_policy(policy: WaitPolicy) -> _core.WaitPolicy:
    """Return the core's policy of the same meaning."""
    match policy._mode:  # noqa: SLF001 (of this module)
        case _Mode.SPIN:
            return _core.WaitPolicy.spin()
        case _Mode.SEMAPHORE:
            return _core.WaitPolicy.park()
        case _Mode.ADAPTIVE:
            max_spin = policy._max_spin  # noqa: SLF001
            is_limited = max_spin * 1e9 < _FOREVER_NS  # (which itself is no double)
            return _core.WaitPolicy.adaptive(int(max_spin * 1e9) if is_limited else _FOREVER_NS)
