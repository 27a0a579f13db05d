"""Who has come to each step of a set-up: by the group's store, beside its collectives.

A collective that a rank does not come to can't say which one, and can't be taken back. So each rank
notes its arrival first, and one that may not wait for ever begins with the collective only when all
have arrived. The first to decide, that all are there or that it has waited enough, decides for all.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_LONGEST_PAUSE = 0.05
_DECISION_SECONDS = 5.0  # after which a decision that somebody has begun to make is not expected
_GO = "go"


class Arrivals:
    """One set-up's arrivals.

    Args:
        store: the group's.
        rank: this process's in the group.
        size: the number of ranks.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        # Each rank counts its set-ups, so that all ranks' first ones meet, all second ones, ...
        self._prefix = f"shmcast/{store.add(f'shmcast/{rank}', 1)}"
        self._store = store
        self._rank = rank
        self._size = size
        self._step = 0

    def arrive(self) -> None:
        """Note that this rank has come to the next step."""
        self._step += 1
        self._store.set(self._key(self._rank), _GO)

    def wait(self, deadline: float) -> None:
        """Wait until all have come to this step, or some rank gives up; `check` then says which.

        Args:
            deadline: on the clock of `time.monotonic`; this rank gives up then.
        """
        pause = 0.0005
        has_decided = False  # or would have, had nobody been quicker
        while not self._is_decided():
            now = time.monotonic()
            if not has_decided and self._have_all_come():
                has_decided = True
                self._decide(_GO)
            elif not has_decided and now >= deadline:
                has_decided = True
                self._decide(json.dumps([self._rank, self.missing()]))
            elif now >= deadline + _DECISION_SECONDS:
                return  # whoever was first to decide has died of it
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def given_up(self) -> tuple[int, list[int]] | None:
        """Return who gave up and whom it missed, as ranks in the group; None: nobody has."""
        if not self._is_decided():
            return None
        decision = self._store.get(self._key("decision")).decode()
        if decision == _GO:
            return None
        rank, missing = json.loads(decision)
        return rank, missing

    def missing(self) -> list[int]:
        """Return the ranks in the group that have not come to this step."""
        return [r for r in range(self._size) if not self._store.check([self._key(r)])]

    def _have_all_come(self) -> bool:
        return self._store.check([self._key(rank) for rank in range(self._size)])

    def _is_decided(self) -> bool:
        return self._store.check([self._key("decision")])

    def _decide(self, decision: str) -> None:
        if self._store.add(self._key("deciders"), 1) == 1:
            self._store.set(self._key("decision"), decision)

    def _key(self, what: object) -> str:
        return f"{self._prefix}/{self._step}/{what}"
