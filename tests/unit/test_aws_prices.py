"""The cost calculator: its prices are data, so what is tested is what is made of them."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from local import template
from naru import cli
from naru.aws_prices import REGIONS, Load, containers, naru, write_units

SEOUL = REGIONS["ap-northeast-2"]


def test_idle_only_the_secret_and_the_alarms_are_paid_for() -> None:
    alarms = sum(map(_metrics_of, template.load().of_type("AWS::CloudWatch::Alarm").values()))
    paid = SEOUL.secret_per_month + alarms * SEOUL.alarm_per_month
    assert sum(naru(Load(0, Decimal(3)), SEOUL).values()) == paid


def _metrics_of(alarm: dict[str, Any]) -> int:
    metrics = alarm.get("Metrics", [{"MetricStat": {}}])
    return sum("MetricStat" in metric for metric in metrics)


def test_a_million_requests_of_three_seconds_cost_what_the_price_list_says() -> None:
    found = naru(Load(10**6, Decimal(3), memory_mb=512), SEOUL)
    assert found["API Gateway"] == Decimal("3.50")
    assert found["Lambda, requests"] == Decimal("0.20")
    assert found["Lambda, 512 MB while it waits"] == Decimal("13.33") * 3 / 2
    assert found["DynamoDB, meters and ledger"] == 5 * Decimal("0.68")


def test_write_units_are_those_that_the_ledger_benchmark_counts() -> None:
    """Its table is in docs/architecture.md; counting again takes a minute."""
    text = (Path(__file__).parent.parent.parent / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| 1 \| ([\d.]+) \| [\d.]+ \|$", text, re.MULTILINE)
    assert [in_flight for in_flight, _ in rows] == ["1", "10", "50"]
    for in_flight, units in rows:
        assert float(write_units(Decimal(in_flight))) == pytest.approx(float(units), rel=0.1)


def test_containers_are_paid_for_without_requests_and_grow_with_the_busiest_moment() -> None:
    idle, busy = containers(Load(0, Decimal(3)), SEOUL), containers(Load(10**8, Decimal(3)), SEOUL)
    assert "Fargate, 2 of 1 vCPU and 2 GB" in idle
    (fargate,) = (name for name in busy if name.startswith("Fargate"))
    # 10^8 a month are 38 a second, 190 at five times that; each takes 65 ms of a vCPU that is half busy.
    assert re.findall(r"\d+", fargate)[0] == "25"


def test_the_command_says_what_naru_adds_to_the_price_of_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cost", "--requests", "2e6", "--latency", "1.5", "--tokens", "500/300", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens_usd"] == 2 * 4900
    for region in found["regions"].values():
        assert region["naru_usd"] == pytest.approx(sum(region["naru"].values()), abs=0.001)
        assert region["share_of_tokens_percent"] == pytest.approx(region["naru_usd"] / 9800 * 100, abs=0.001)
    assert found["regions"]["ap-northeast-2"]["naru_usd"] != found["regions"]["us-east-1"]["naru_usd"]


def test_the_command_prints_both_regions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cost"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"USD a month +Seoul +Virginia", printed)
    assert "1,000,000 requests a month of 3 s" in printed


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--requests", "0"), "is not a number of requests"),
        (("--requests", "1.5"), "is not a number of requests"),
        (("--requests", "nan"), "is not a number of requests"),
        (("--latency", "0"), "is not a number"),
        (("--tokens", "500"), "is not IN/OUT"),
        (("--model", "no-such-model"), "does not exist"),
        (("--catalog", "no-such-file.toml"), "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(["cost", *arguments])
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    assert status == 2
    assert reason in capsys.readouterr().err


def test_free_tokens_have_no_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cost", "--tokens", "0/0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["regions"]["us-east-1"]["share_of_tokens_percent"] is None
