"""Tests that share something expensive run in one process."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("groups")
def test_groups_are_heard(request: pytest.FixtureRequest) -> None:
    """With a pytest that xdist does not fit, every worker would start a gateway, and tests would meet each other's rows."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("runs in one process")
    assert request.node.nodeid.endswith("@groups")
