"""The ledger: one immutable row per request that reached a provider.

A row is put once, under a key that follows from the request id alone, and is never changed or deleted; functions
hold no permission for either. It holds what an invoice needs and nothing that a user wrote.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from datetime import date
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from naru.aws_calls import call
from naru.business_time import business_day
from naru.errors import StoreUnavailableError
from naru.pricing import Currency, Rates, Usage
from naru.request_ids import arrived_at_ms

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

SHARDS = 8
"""How many partitions a day is spread over. Part of the key: changing it orphans the rows there are."""

Outcome = Literal["completed", "truncated", "failed", "rejected", "unknown"]
"""``completed``: a whole answer. ``truncated``: a stream that was cut; what came is charged. ``failed``: no answer.
``rejected``: the provider refused the request itself. ``unknown``: the gateway died; charged at its worst case."""

UsageSource = Literal["reported", "estimated", "none"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call upstream: where, how it ended (``ok``, or the reason of the failure), how long it took."""

    deployment: str
    result: str
    duration_ms: int
    maybe_billed: bool = False
    """True when the provider may have billed it though no answer came back."""
    why: str = ""
    """Why it was made: nothing for the first choice, else ``again`` (the same deployment), ``failover`` (another of the
    same model), ``fallback`` (another model), ``probe`` (is it well again?), or ``continue`` and ``restart`` (the rest
    of an answer that was cut)."""
    waited_ms: int = 0
    """How long the request waited before it: for a provider that asked for it, for its turn, or to try again."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one deployment gave to an answer that another one began or went on with."""

    model: str
    deployment: str
    usage: Usage
    rates: Rates
    cost_pico_usd: int


@dataclass(frozen=True, slots=True)
class Row:
    """What one request cost and why. Token counts follow :class:`~naru.pricing.Usage`.

    Of an answer in several parts, ``usage`` and ``cost_pico_usd`` are their sums, ``model_served``, ``deployment`` and
    ``rates`` those of the first.
    """

    request_id: str
    key_id: str
    end_user: str | None
    batch_id: str | None
    stream: bool
    model_asked: str
    model_served: str
    deployment: str
    outcome: Outcome
    error_code: str | None
    usage: Usage
    usage_source: UsageSource
    catalog_version: str
    rates: Rates
    cost_pico_usd: int
    maybe_billed_pico_usd: int
    """The most that attempts without an answer can have cost; not part of the cost."""
    attempts: tuple[Attempt, ...]
    first_token_ms: int | None
    latency_ms: int
    parts: tuple[Part, ...] = ()
    """None where one deployment gave the whole answer."""

    @property
    def arrived_at_ms(self) -> int:
        """Unix milliseconds."""
        return arrived_at_ms(self.request_id)

    @property
    def charges(self) -> tuple[Part, ...]:
        """Who is to be paid how much: the parts, or the whole answer as one. Their costs add up to the row's."""
        return self.parts or (Part(self.model_served, self.deployment, self.usage, self.rates, self.cost_pico_usd),)


def partition(day: date, shard: int) -> str:
    """The partition key of one shard of a business day."""
    return f"{day.isoformat()}#{shard}"


def key_of(request_id: str, zone: ZoneInfo) -> dict[str, Any]:
    """Where the row of a request lies, as a DynamoDB key."""
    day = business_day(arrived_at_ms(request_id), zone)
    shard = zlib.crc32(request_id.encode()) % SHARDS
    return {"day_shard": {"S": partition(day, shard)}, "request_id": {"S": request_id}}


class Ledger:
    """Puts rows."""

    def __init__(self, client: DynamoDBClient, table: str, zone: ZoneInfo) -> None:
        self._client = client
        self._table = table
        self._zone = zone

    async def put(self, row: Row) -> bool:
        """Writes the row; False where the request has another one already, which then stands.

        Raises :class:`~naru.errors.StoreUnavailableError` when DynamoDB does not take it.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        item = key_of(row.request_id, self._zone) | to_item(row)
        try:
            await call(
                self._client.put_item,
                TableName=self._table,
                Item=item,
                ConditionExpression="attribute_not_exists(request_id)",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except self._client.exceptions.ConditionalCheckFailedException as error:
            # The client sends a write again whose answer was lost on the way: then the row that stands is this one.
            return bool(error.response.get("Item") == item)
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot reach its ledger.",
                log={"reason": f"{type(error).__name__} while putting a row into {self._table}: {error}"},
            ) from error
        return True

    async def get(self, request_id: str) -> Row | None:
        """The row of a request, read consistently; None where there is none.

        Raises :class:`~naru.errors.StoreUnavailableError`.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            # A query, though it is for one item: functions may put to this table and query it, and nothing else.
            key = key_of(request_id, self._zone)
            answer = await call(
                self._client.query,
                TableName=self._table,
                KeyConditionExpression="day_shard = :day_shard AND request_id = :request_id",
                ExpressionAttributeValues={f":{name}": value for name, value in key.items()},
                ConsistentRead=True,
            )
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot reach its ledger.",
                log={"reason": f"{type(error).__name__} while reading a row of {self._table}: {error}"},
            ) from error
        return next(map(from_item, answer["Items"]), None)


def facts(row: Row) -> dict[str, Any]:
    """The whole row as plain values, for the log: the row can be rebuilt from it."""
    facts: dict[str, Any] = _plain(row)
    return facts


_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in (Row, Part, Attempt, Usage, Rates)}


def _plain(value: Any) -> Any:
    """As :func:`dataclasses.asdict`, without its copies, which take ten times as long."""
    if (names := _FIELDS.get(type(value))) is not None:
        return {name: _plain(getattr(value, name)) for name in names}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def to_item(row: Row) -> dict[str, Any]:
    """The row's attributes in DynamoDB's form, without its key. What is None or zero is left out: a row should
    fit into one write unit of 1 KB.
    """
    strings = {"end_user": row.end_user, "batch_id": row.batch_id, "error_code": row.error_code}
    return {
        "key_id": {"S": row.key_id},
        "stream": {"BOOL": row.stream},
        "model_asked": {"S": row.model_asked},
        "model_served": {"S": row.model_served},
        "deployment": {"S": row.deployment},
        "outcome": {"S": row.outcome},
        "usage_source": {"S": row.usage_source},
        "cost_pico_usd": {"N": str(row.cost_pico_usd)},
        "latency_ms": {"N": str(row.latency_ms)},
        "catalog_version": {"S": row.catalog_version},
        "attempts": {
            "L": [
                {
                    "M": {
                        "deployment": {"S": attempt.deployment},
                        "result": {"S": attempt.result},
                        "duration_ms": {"N": str(attempt.duration_ms)},
                        **({"maybe_billed": {"BOOL": True}} if attempt.maybe_billed else {}),
                        **({"why": {"S": attempt.why}} if attempt.why else {}),
                        **({"waited_ms": {"N": str(attempt.waited_ms)}} if attempt.waited_ms else {}),
                    }
                }
                for attempt in row.attempts
            ]
        },
        **({"maybe_billed_pico_usd": {"N": str(row.maybe_billed_pico_usd)}} if row.maybe_billed_pico_usd else {}),
        **({"first_token_ms": {"N": str(row.first_token_ms)}} if row.first_token_ms is not None else {}),
        **({"parts": {"L": [{"M": _part_to_item(part)} for part in row.parts]}} if row.parts else {}),
        **_usage_to_item(row.usage),
        **_rates_to_item(row.rates),
        **{name: {"S": text} for name, text in strings.items() if text},
    }


def _part_to_item(part: Part) -> dict[str, Any]:
    return {
        "model": {"S": part.model},
        "deployment": {"S": part.deployment},
        **({"estimated": {"BOOL": True}} if part.usage.estimated else {}),
        **_usage_to_item(part.usage),
        **_rates_to_item(part.rates),
    }


def _usage_to_item(usage: Usage) -> dict[str, Any]:
    numbers = {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }
    return {name: {"N": str(number)} for name, number in numbers.items() if number}


def _rates_to_item(rates: Rates) -> dict[str, Any]:
    # In this order: input, cached input, cache write, output, and cache write for an hour where it has a price; pico-USD
    # a token.
    prices = [rates.input_pico_usd, rates.cached_input_pico_usd, rates.cache_write_pico_usd, rates.output_pico_usd]
    if rates.cache_write_1h_pico_usd is not None:
        prices.append(rates.cache_write_1h_pico_usd)
    return {
        "rates": {"L": [{"N": str(price)} for price in prices]},
        "currency": {"S": rates.currency},
        **({"krw_per_usd": {"N": str(rates.krw_per_usd)}} if rates.krw_per_usd else {}),
    }


def from_item(item: dict[str, Any]) -> Row:
    """The row that an item of the table holds."""

    def text(name: str) -> str | None:
        return item[name]["S"] if name in item else None

    source: UsageSource = item["usage_source"]["S"]
    outcome: Outcome = item["outcome"]["S"]
    return Row(
        request_id=item["request_id"]["S"],
        key_id=item["key_id"]["S"],
        end_user=text("end_user"),
        batch_id=text("batch_id"),
        stream=item["stream"]["BOOL"],
        model_asked=item["model_asked"]["S"],
        model_served=item["model_served"]["S"],
        deployment=item["deployment"]["S"],
        outcome=outcome,
        error_code=text("error_code"),
        usage=_usage_from_item(item, estimated=source == "estimated"),
        usage_source=source,
        catalog_version=item["catalog_version"]["S"],
        rates=_rates_from_item(item),
        cost_pico_usd=_number(item, "cost_pico_usd"),
        maybe_billed_pico_usd=_number(item, "maybe_billed_pico_usd"),
        attempts=tuple(_attempt_from_item(attempt["M"]) for attempt in item["attempts"]["L"]),
        first_token_ms=_number(item, "first_token_ms") if "first_token_ms" in item else None,
        latency_ms=_number(item, "latency_ms"),
        parts=tuple(_part_from_item(part["M"]) for part in item["parts"]["L"]) if "parts" in item else (),
    )


def _attempt_from_item(item: dict[str, Any]) -> Attempt:
    return Attempt(
        deployment=item["deployment"]["S"],
        result=item["result"]["S"],
        duration_ms=_number(item, "duration_ms"),
        maybe_billed=item.get("maybe_billed", {}).get("BOOL", False),
        why=item.get("why", {}).get("S", ""),
        waited_ms=_number(item, "waited_ms"),
    )


def _part_from_item(item: dict[str, Any]) -> Part:
    usage = _usage_from_item(item, estimated=item.get("estimated", {}).get("BOOL", False))
    rates = _rates_from_item(item)
    return Part(item["model"]["S"], item["deployment"]["S"], usage, rates, rates.cost_pico_usd(usage))


def _usage_from_item(item: dict[str, Any], *, estimated: bool) -> Usage:
    return Usage(
        prompt_tokens=_number(item, "prompt_tokens"),
        completion_tokens=_number(item, "completion_tokens"),
        cached_tokens=_number(item, "cached_tokens"),
        cache_write_tokens=_number(item, "cache_write_tokens"),
        cache_write_1h_tokens=_number(item, "cache_write_1h_tokens"),
        reasoning_tokens=_number(item, "reasoning_tokens"),
        estimated=estimated,
    )


def _rates_from_item(item: dict[str, Any]) -> Rates:
    currency: Currency = item["currency"]["S"]
    price = [int(rate["N"]) for rate in item["rates"]["L"]]
    return Rates(
        input_pico_usd=price[0],
        cached_input_pico_usd=price[1],
        cache_write_pico_usd=price[2],
        output_pico_usd=price[3],
        currency=currency,
        krw_per_usd=_number(item, "krw_per_usd") or None,
        cache_write_1h_pico_usd=price[4] if len(price) > 4 else None,
    )


def _number(item: dict[str, Any], name: str) -> int:
    return int(item[name]["N"]) if name in item else 0
