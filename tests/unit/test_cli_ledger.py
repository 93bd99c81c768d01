"""``naru ledger re-rate``: a month at other prices, computed from rows that stay as they are."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru import catalog
from naru.cli import ledger, main
from naru.cli.aws import Stack
from naru.ledger import Part, Row, key_of, to_item
from naru.pricing import Rates, Usage
from naru.request_ids import new_request_id
from tests.moto_tables import tables

SEOUL = ZoneInfo("Asia/Seoul")
OMNI, OMNI_AT = "hyperclova-x-omni", "holysheep/hyperclova-x-omni"
CATALOG = catalog.load()
RATES = ledger.rates_of(CATALOG)[OMNI, OMNI_AT]
# 2026-10-31 24:00 in Seoul.
NOVEMBER_MS = 1_793_458_800_000


def row(at_ms: int = NOVEMBER_MS, *, usage: Usage | None = None, **fields: Any) -> Row:
    usage = usage or Usage(prompt_tokens=1000, completion_tokens=100, cached_tokens=400)
    whole = Row(
        request_id=new_request_id(at_ms=at_ms),
        key_id="key_0123456789ab",
        end_user=None,
        batch_id=None,
        stream=False,
        model_asked=OMNI,
        model_served=OMNI,
        deployment=OMNI_AT,
        outcome="completed",
        error_code=None,
        usage=usage,
        usage_source="reported",
        catalog_version="1",
        rates=RATES,
        cost_pico_usd=RATES.cost_pico_usd(usage),
        maybe_billed_pico_usd=0,
        attempts=(),
        first_token_ms=None,
        latency_ms=1,
    )
    return replace(whole, **fields)


NO_RATES = Rates(0, 0, 0, 0, currency="USD", krw_per_usd=None)
DEARER = Rates(2 * RATES.input_pico_usd, RATES.cached_input_pico_usd, 0, RATES.output_pico_usd, "USD", None)


def test_a_charge_is_its_tokens_at_the_other_price() -> None:
    (charge,) = ledger.re_rate(row(), {(OMNI, OMNI_AT): DEARER})
    # 600 tokens of the prompt were not cached, and those cost twice as much.
    assert (charge.standing, charge.difference_pico_usd) == ("priced", 600 * RATES.input_pico_usd)


def test_what_nobody_knows_the_tokens_of_keeps_its_price() -> None:
    """A request whose process died was charged at its worst case."""
    unknown = row(usage=Usage(0, 0), rates=NO_RATES, cost_pico_usd=10**9, outcome="unknown", deployment="unknown")
    (charge,) = ledger.re_rate(unknown, ledger.rates_of(CATALOG))
    assert (charge.standing, charge.re_rated_pico_usd) == ("worst_case", 10**9)


def test_what_the_catalog_does_not_know_keeps_its_price() -> None:
    (charge,) = ledger.re_rate(row(), {})
    assert (charge.standing, charge.difference_pico_usd) == ("not_in_catalog", 0)


def test_an_answer_in_parts_is_priced_part_by_part() -> None:
    usage = Usage(prompt_tokens=10, completion_tokens=5)
    parts = tuple(Part(OMNI, at, usage, RATES, RATES.cost_pico_usd(usage)) for at in (OMNI_AT, "elsewhere"))
    whole = row(parts=parts, usage=usage + usage, cost_pico_usd=sum(part.cost_pico_usd for part in parts))
    charges = list(ledger.re_rate(whole, {(OMNI, OMNI_AT): DEARER}))
    assert [charge.standing for charge in charges] == ["priced", "not_in_catalog"]
    assert sum(charge.part.cost_pico_usd for charge in charges) == whole.cost_pico_usd


_TOKENS = st.integers(0, 10**6)


@given(st.lists(st.tuples(_TOKENS, _TOKENS, _TOKENS), max_size=20))
def test_at_its_own_prices_a_month_costs_what_it_cost(usages: list[tuple[int, int, int]]) -> None:
    """To the pico-dollar."""
    result = ledger.ReRating()
    rows = [row(usage=Usage(prompt + cached, completion, cached)) for prompt, completion, cached in usages]
    for each in rows:
        for charge in ledger.re_rate(each, ledger.rates_of(CATALOG)):
            result.add(charge)
    assert result.charged_pico_usd == result.re_rated_pico_usd == sum(each.cost_pico_usd for each in rows)


# ── The command ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def month(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Row]]:
    """A table with rows of November, and of the moments before and after it."""
    with tables("LedgerTable") as client:
        december_ms = NOVEMBER_MS + 30 * 86_400_000
        inside = [row(at_ms) for at_ms in (NOVEMBER_MS, NOVEMBER_MS + 5 * 86_400_000, december_ms - 1)]
        inside.append(row(NOVEMBER_MS + 1, end_user="=HYPERLINK(1)"))
        for each in (*inside, row(NOVEMBER_MS - 1), row(december_ms)):
            client.put_item(TableName="LedgerTable", Item=key_of(each.request_id, SEOUL) | to_item(each))
        session = type("Session", (), {"client": staticmethod(lambda *_, **__: client)})
        stack = Stack("naru", session, {"LedgerTable": "LedgerTable"}, {})
        monkeypatch.setattr(ledger, "find_stack", lambda _: stack)
        yield inside
        # Nothing but what was there.
        assert len(client.scan(TableName="LedgerTable")["Items"]) == 6


@pytest.fixture
def dearer(tmp_path: Path) -> str:
    """The built-in catalog, with the output of one model at twice its price."""
    text, old = catalog.BUILT_IN.read_text(encoding="utf-8"), "output_micro_per_mtok = 10_500_000"
    assert text.count(old) == 1
    new = tmp_path / "new.toml"
    new.write_text(text.replace(old, "output_micro_per_mtok = 21_000_000"), encoding="utf-8")
    return str(new)


def re_rate(*arguments: str) -> int:
    return main(["ledger", "re-rate", "--month", "2026-11", *arguments])


def test_the_differences_of_a_month_are_written_and_add_up(
    month: list[Row], dearer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "differences.csv"
    assert re_rate("--catalog", dearer, "--output", str(output), "--json") == 0
    summary = json.loads(capsys.readouterr().out, parse_float=Decimal)
    assert summary["requests"] == 4
    assert output.read_bytes().startswith(codecs.BOM_UTF8)  # a spreadsheet shows Korean names as they are
    with output.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["request_id"] for line in lines} == {each.request_id for each in month}
    difference = sum(Decimal(line["difference_usd"]) for line in lines)
    assert difference == summary["re_rated_usd"] - summary["charged_usd"] == Decimal(4 * 100 * 10_500_000) / 10**12
    # A spreadsheet must not take a user's name for a formula.
    assert [line["end_user"] for line in lines if line["end_user"]] == ["'=HYPERLINK(1)"]


def test_a_dry_run_writes_no_file(
    month: list[Row], dearer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert re_rate("--catalog", dearer, "--dry-run") == 0
    assert set(tmp_path.iterdir()) == before
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "4 requests of 2026-11" in shown.out
    assert "0.0042" in shown.out


def test_at_the_same_prices_nothing_differs(
    month: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "differences.csv"
    assert re_rate("--catalog", str(catalog.BUILT_IN), "--output", str(output)) == 0
    assert len(output.read_text(encoding="utf-8").splitlines()) == 1
    assert str(output) in capsys.readouterr().err


def test_a_file_that_is_there_is_not_overwritten(
    month: list[Row], dearer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "differences.csv"
    output.write_text("mine", encoding="utf-8")
    assert re_rate("--catalog", dearer, "--output", str(output)) == 1
    assert "is there already" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "mine"


def test_half_a_month_leaves_no_file(
    month: list[Row], dearer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(ledger, "re_rate", breaks)
    output = tmp_path / "differences.csv"
    assert re_rate("--catalog", dearer, "--output", str(output)) == 130
    assert not output.exists()


@pytest.mark.parametrize("wanted", ["2026", "2026-13", "11", "2026-11-01", "last"])
def test_a_month_that_is_none_is_misuse(wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ledger", "re-rate", "--month", wanted, "--catalog", "x"])
    assert ended.value.code == 2
    assert "is not a month" in capsys.readouterr().err


def test_a_catalog_that_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert re_rate("--catalog", str(tmp_path / "none.toml")) == 1
    assert "cannot be read" in capsys.readouterr().err
