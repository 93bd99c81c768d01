"""The scale simulation: what it must show at any size, at small ones; and that one benchmark's failure stops no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.__main__ import run_all
from benchmarks.scale_plots import Line, plot
from benchmarks.scale_world import PRIMARY, Setup, simulate


@pytest.mark.parametrize("shards", [1, 4])
def test_a_budget_that_ends_in_mid_run_is_not_overshot(shards: int) -> None:
    row = scale.meters(40, shards=shards)
    assert row["overshoot_pico_usd"] == 0
    assert row["refused_for_budget"] > 0
    assert row["answered"] > 0
    assert 0.9 < row["budget_committed"] <= 1


def test_an_overshoot_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A meter that lets everybody in, though its budget is spent."""
    monkeypatch.setattr("naru.meter_state.Meter.refusal", lambda _self, _demand: None)
    monkeypatch.setattr("benchmarks.scale_tables.condition", lambda _text: lambda *_: True)
    with pytest.raises(scale.OvershootError):
        scale.meters(40)


def test_what_the_meters_spent_is_what_the_rows_say_and_the_provider_billed() -> None:
    world = simulate(Setup(20, requests_each=2, seconds=60.0))
    meter = world.tables.items["MeterTable", "organisation"]
    spent = sum(month["spent_pico_usd"] for month in meter["months"].values())
    assert world.outcomes == {"answered": 40}
    assert meter["in_flight"] == {}
    assert spent == world.overshoot.rows_pico_usd == world.providers[PRIMARY].billed_pico_usd > 0


def test_the_same_seed_gives_the_same_world() -> None:
    one, same, other = (simulate(Setup(30, capacity=10, settle_s=2.0, seconds=8.0, seed=seed)) for seed in (1, 1, 2))
    assert one.latencies_s == same.latencies_s != other.latencies_s


def test_an_item_takes_a_thousand_write_units_a_second() -> None:
    world = simulate(Setup(300, settle_s=1.0, seconds=4.0))
    hottest = world.traffic["MeterTable", "organisation"]
    assert hottest.throttled > 0
    assert hottest.write_units <= 1000 * (world.traffic_s + 1)


def test_a_plot_has_a_point_for_each_figure() -> None:
    drawn = plot("title", [Line("a", [(10, 1.0), (100, 2.0)]), Line("b", [(10, 3.0)])])
    assert drawn.count("<circle") == 3


def test_a_benchmark_that_fails_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise RuntimeError("no room")

    assert run_all({"bad": fails, "good": lambda: {"answer": 42}}, tmp_path) == 1
    assert json.loads((tmp_path / "good.json").read_text()) == {"answer": 42}
    told = capsys.readouterr()
    assert "all together" in told.out
    assert told.err.endswith("failed: bad\n")


def test_benchmarks_that_work_exit_with_zero(tmp_path: Path) -> None:
    assert run_all({"good": list}, tmp_path) == 0
