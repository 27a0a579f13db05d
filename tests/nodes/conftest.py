"""Hosts for tests of several nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.hosts import Network


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """Make hosts and ranks as the test's parameter says.

    Without a parameter, two hosts of two ranks each.
    """
    names, counts = getattr(request, "param", (["here", "there"], (2, 2)))
    made = Network(names, counts)
    yield made
    made.close()
