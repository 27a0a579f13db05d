"""Hosts for tests of several nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.hosts import Network, NotPermitted


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """Make hosts and ranks as the test's parameter says, or skip with the reason why not.

    Without a parameter, two hosts of two ranks each.
    """
    names, counts = getattr(request, "param", (["here", "there"], (2, 2)))
    try:
        made = Network(names, counts)
    except NotPermitted as why:
        pytest.skip(f"no hosts to test on: {why}")
    yield made
    made.close()
