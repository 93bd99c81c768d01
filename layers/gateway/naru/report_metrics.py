"""Figures for CloudWatch's alarms, as lines of the log (embedded metric format): no call, nothing to pay while idle.

=================  ===================================================================================
BudgetPercent      of the organisation's monthly budget that is spent; every five minutes
OverdueReports     days whose report should have been sent hours ago; every five minutes
SweptUnknown       requests of unknown end that a sweep charged at their worst case
=================  ===================================================================================
"""

from __future__ import annotations

from naru.metrics import NAMESPACE


def put(name: str, value: float, *, unit: str = "Count") -> None:
    """Writes one figure, with the dimension that all of the gateway's have."""
    from aws_lambda_powertools.metrics import EphemeralMetrics

    blob = EphemeralMetrics(namespace=NAMESPACE, service="naru")
    blob.add_metric(name=name, unit=unit, value=value)
    blob.flush_metrics()
