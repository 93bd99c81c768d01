"""``naru ledger``: questions to the rows. Nothing here writes to the table, and nothing could: rows are immutable."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, TextIO

from naru.amounts import to_usd
from naru.catalog import Catalog, load
from naru.cli.aws import Stack, call_aws, find_stack
from naru.cli.output import CommandError, count, note, show_json, show_table
from naru.errors import CatalogError
from naru.ledger import SHARDS, Part, Row, from_item, partition
from naru.plain_text import CsvWriter
from naru.pricing import Rates

_HEADINGS = (
    "request_id", "key_id", "end_user", "batch_id", "model", "deployment", "catalog_version", "prompt_tokens",
    "cached_tokens", "cache_write_tokens", "completion_tokens", "charged_usd", "re_rated_usd", "difference_usd",
)  # fmt: skip

Standing = Literal["priced", "worst_case", "not_in_catalog"]
"""Why a charge has another price, or keeps its own: a request of which nobody knows the end has no tokens to price."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What one deployment was paid for one request, and what it would be paid at other prices."""

    row: Row
    part: Part
    re_rated_pico_usd: int
    standing: Standing

    @property
    def difference_pico_usd(self) -> int:
        """What would be paid more; below zero, less."""
        return self.re_rated_pico_usd - self.part.cost_pico_usd


@dataclass(slots=True)
class _Sum:
    """Of the charges of one deployment."""

    charges: int = 0
    charged_pico_usd: int = 0
    re_rated_pico_usd: int = 0


@dataclass(slots=True)
class ReRating:
    """A month at other prices."""

    rows: int = 0
    sums: dict[tuple[str, str, Standing], _Sum] = field(default_factory=dict)
    """By model, deployment and standing."""

    def add(self, charge: Charge) -> None:
        """Counts one more."""
        of = self.sums.setdefault((charge.part.model, charge.part.deployment, charge.standing), _Sum())
        of.charges += 1
        of.charged_pico_usd += charge.part.cost_pico_usd
        of.re_rated_pico_usd += charge.re_rated_pico_usd

    @property
    def charged_pico_usd(self) -> int:
        """All of it, as it is in the ledger."""
        return sum(of.charged_pico_usd for of in self.sums.values())

    @property
    def re_rated_pico_usd(self) -> int:
        """All of it, at the other prices."""
        return sum(of.re_rated_pico_usd for of in self.sums.values())


def re_rate(row: Row, rates: dict[tuple[str, str], Rates]) -> Iterator[Charge]:
    """The charges of a row at other rates, which are those of a (model, deployment)."""
    for part in row.charges:
        new = rates.get((part.model, part.deployment))
        if part.rates.cost_pico_usd(part.usage) != part.cost_pico_usd:
            yield Charge(row, part, part.cost_pico_usd, "worst_case")
        elif new is None:
            standing: Standing = "not_in_catalog" if part.cost_pico_usd else "priced"
            yield Charge(row, part, part.cost_pico_usd, standing)
        else:
            yield Charge(row, part, new.cost_pico_usd(part.usage), "priced")


def rates_of(catalog: Catalog) -> dict[tuple[str, str], Rates]:
    """The rates of each (model, deployment)."""
    return {
        (name, deployment.name): deployment.rates
        for name, model in catalog.models.items()
        for deployment in model.deployments
    }


def re_rate_month(arguments: argparse.Namespace) -> None:
    """Prints what a month would have cost at the prices of a catalog, and writes what differs into a CSV file."""
    first: date = arguments.month
    try:
        catalog = load(Path(arguments.catalog))
    except CatalogError as error:
        raise CommandError(str(error)) from None
    target = None if arguments.dry_run else Path(arguments.output or f"re-rate-{first:%Y-%m}.csv")
    result, rates = ReRating(), rates_of(catalog)
    rows = read_month(find_stack(arguments), first)
    with _differences(target) as write:
        for row in rows:
            result.rows += 1
            for charge in re_rate(row, rates):
                result.add(charge)
                if charge.difference_pico_usd:
                    write(charge)
    _show(arguments, first, catalog, result)
    if target is not None:
        note(f"The differences, request by request: {target}")


def read_month(stack: Stack, first: date) -> Iterator[Row]:
    """Every row of the month that begins with ``first``, day by day."""
    client, table = stack.client("dynamodb"), stack.output("LedgerTable")
    day = first
    while day.month == first.month:
        for shard in range(SHARDS):
            pages = client.get_paginator("query").paginate(
                TableName=table,
                KeyConditionExpression="day_shard = :day_shard",
                ExpressionAttributeValues={":day_shard": {"S": partition(day, shard)}},
            )
            yield from map(from_item, _items(pages))
        day += timedelta(days=1)


def _items(pages: Iterable[Any]) -> Iterator[dict[str, Any]]:
    source = iter(pages)
    while (page := call_aws(next, source, None)) is not None:
        yield from page["Items"]


# ── What is written and shown ──────────────────────────────────────────────────────────────────────────────


@contextmanager
def _differences(target: Path | None) -> Iterator[Any]:
    """Something that writes a charge into the file; into none for a dry run."""
    if target is None:
        yield lambda _charge: None
        return
    try:
        # A spreadsheet takes a CSV without the mark for its country's old code page.
        file = target.open("x", encoding="utf-8-sig", newline="")
    except FileExistsError:
        raise CommandError(f"{target} is there already; move it away, or name another with --output") from None
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror}") from None
    try:
        with file:
            yield _writer(file)
    except BaseException:
        target.unlink()  # half a month looks like a whole one
        raise


def _writer(file: TextIO) -> Any:
    out = CsvWriter(file, _HEADINGS, newline="\r\n")

    def write(charge: Charge) -> None:
        row, part = charge.row, charge.part
        out.write(
            (
                row.request_id,
                row.key_id,
                row.end_user,
                row.batch_id,
                part.model,
                part.deployment,
                row.catalog_version,
                part.usage.prompt_tokens,
                part.usage.cached_tokens,
                part.usage.cache_write_tokens,
                part.usage.completion_tokens,
                to_usd(part.cost_pico_usd),
                to_usd(charge.re_rated_pico_usd),
                to_usd(charge.difference_pico_usd),
            )
        )

    return write


_REMARKS: dict[Standing, str] = {
    "priced": "",
    "worst_case": "kept: charged at its worst case, no tokens known",
    "not_in_catalog": "kept: not in this catalog",
}


def _show(arguments: argparse.Namespace, first: date, catalog: Catalog, result: ReRating) -> None:
    if arguments.json:
        show_json(_as_json(first, catalog, result))
        return
    lines = [
        _line(model, deployment, of, _REMARKS[standing])
        for (model, deployment, standing), of in sorted(result.sums.items())
    ]
    total = _Sum(sum(of.charges for of in result.sums.values()), result.charged_pico_usd, result.re_rated_pico_usd)
    lines.append(_line("all", "", total, f"{count(result.rows)} requests of {first:%Y-%m}, catalog {catalog.version}"))
    show_table(("MODEL", "DEPLOYMENT", "CHARGES", "CHARGED", "RE-RATED", "DIFFERENCE", ""), lines)


def _line(model: str, deployment: str, of: _Sum, remark: str) -> tuple[str, ...]:
    amounts = (of.charged_pico_usd, of.re_rated_pico_usd, of.re_rated_pico_usd - of.charged_pico_usd)
    return (model, deployment, count(of.charges), *(f"{to_usd(amount):,f}" for amount in amounts), remark)


def _as_json(first: date, catalog: Catalog, result: ReRating) -> dict[str, Any]:
    return {
        "object": "ledger.re_rating",
        "month": f"{first:%Y-%m}",
        "catalog_version": catalog.version,
        "requests": result.rows,
        "charged_usd": to_usd(result.charged_pico_usd),
        "re_rated_usd": to_usd(result.re_rated_pico_usd),
        "data": [
            {
                "model": model,
                "deployment": deployment,
                "standing": standing,
                "charges": of.charges,
                "charged_usd": to_usd(of.charged_pico_usd),
                "re_rated_usd": to_usd(of.re_rated_pico_usd),
            }
            for (model, deployment, standing), of in sorted(result.sums.items())
        ],
    }
