"""Whose fault an error of a provider is: a table of real bodies, and that a client's own words decide nothing."""

from __future__ import annotations

import pytest

from naru import dialects
from naru.faults import ProviderFault, judge
from tests.unit.fault_bodies import BODIES, Body


def fault_of(body: Body) -> ProviderFault:
    error = dialects.for_name(body.dialect).error(body.status, body.headers, body.payload)
    return judge(error, sent=body.sent.encode())


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.id)
def test_each_error_is_somebodys_fault(body: Body) -> None:
    fault = fault_of(body)
    assert fault.kind == body.kind, fault
