"""Percentiles and how sure one can be of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 400
CONFIDENCE = 0.95
_MOST = 4000  # values of a turn that a resample draws: more make no narrower interval worth having

Values = npt.NDArray[np.float64]


def percentile(percent: float) -> Callable[[Values], float]:
    """Return a function that returns this percentile of its values."""
    return lambda values: float(np.percentile(values, percent))


def interval(turns: Sequence[Values], statistic: Callable[[Values], float]) -> tuple[float, float]:
    """Return a bootstrap interval of a statistic over the values of all turns.

    Draw turns, and then values of each of them: the messages of one turn share a minute of the
    machine and are alike, so that drawing among all values would claim too much. (The
    two-stage bootstrap of Davison and Hinkley, Bootstrap Methods and their Application, 3.8.)

    Args:
        turns: the values of each turn; none is empty.
        statistic: a function of the values of several turns together.

    Returns:
        The ends of the interval at `CONFIDENCE`.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(turns), len(turns))
        drawn = [rng.choice(turns[i], min(len(turns[i]), _MOST)) for i in chosen]
        found.append(statistic(np.concatenate(drawn)))
    beyond = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(found, [beyond, 100 - beyond])
    return float(low), float(high)
