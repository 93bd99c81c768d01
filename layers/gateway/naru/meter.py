"""Admission and settlement: a request must pass the meters of its key, of its end user and of the organisation.

The order of writes, for every request::

    1  admit key (and its end user)                    ┐ refused: what was admitted before is released
    2  admit organisation                              ┘
    3  call the provider
    4  put the ledger row, if there is none
    5  settle all of them with the row's cost

Each admission is one conditional write with no read before it; see :mod:`naru.meter_state`. A process that dies
leaves leases behind, and the sweeper ends them by what it finds: the leases of the key and the organisation together say
that the provider may have been called, the row says what it cost. A process that lives leaves none: it releases what a
request was given, or may have been given by a write whose answer was lost, and tries again with its next request what
it could not release.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from naru.attributes import from_item, to_item
from naru.aws_calls import call
from naru.business_time import business_day
from naru.end_users import limited_name
from naru.errors import NaruError, QuotaExceededError, RateLimitedError, StoreUnavailableError
from naru.keys import Proven, read_authorization, unknown_key
from naru.meter_changes import Change, change_limits
from naru.meter_state import SLOT_MS, UNLIMITED, Demand, Lease, Limits, Meter, Refusal, Update, expiry_s, new_item
from naru.refusals import headers_of, refused
from naru.request_ids import ADMITTED_WITHIN_MS, Age, arrived_at_ms
from naru.unended import Ending, Unended

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

logger = logging.getLogger(__name__)

ORGANISATION = "organisation"
_TRIES = 200
_PATIENCE_S = 2.0
"""How long a request waits for leases to be released that it does not need. The release itself goes on."""
_REMEMBERED_AT_ONCE = 20
_LEASES_S = 5.0


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who is calling."""

    key_id: str
    headers: Mapping[str, str]
    """What its limits look like now."""
    may_route: bool = False
    """Whether its requests may say how they are routed."""
    max_parallel: int = UNLIMITED
    """How many requests it may have in flight."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What has been set aside for one request, meter by meter, the key's first."""

    key_id: str
    leases: tuple[tuple[str, Lease], ...]
    headers: Mapping[str, str]
    age: Age
    models: frozenset[str] | None = None
    """Those that the key may use; None for all."""


class _ConditionFailedError(Exception):
    """The write did not happen; ``item`` is what was there instead."""

    def __init__(self, item: dict[str, Any] | None) -> None:
        super().__init__("condition failed")
        self.item = item


OnSpent = Callable[[Meter, str, int], Awaitable[object]]
"""Hears of each cost that has been written to a meter: the meter after it, the month, the pico-USD. Must not raise."""


class Meters:
    """Lets requests in, and ends their leases."""

    def __init__(
        self,
        client: DynamoDBClient,
        table: str,
        zone: ZoneInfo,
        *,
        organisation_budget_pico_usd: int,
        rng: random.Random | None = None,
        on_spent: OnSpent | None = None,
    ) -> None:
        self._client = client
        self._table = table
        self._zone = zone
        self._organisation = Limits(budget_pico_usd=organisation_budget_pico_usd)
        self._rng = rng or random.SystemRandom()
        self._on_spent = on_spent
        self._seen: dict[str, Meter] = {}
        self._unended = Unended()
        self._releasing: set[asyncio.Task[None]] = set()

    # ── Who is calling ─────────────────────────────────────────────────────────────────────────────────────

    async def authenticate(self, authorization: str | Proven | None, *, now_ms: int | None = None) -> ApiKey:
        """The API key that the Authorization header proves, for requests that spend nothing.

        Raises :class:`~naru.errors.AuthenticationError`, :class:`~naru.errors.PermissionDeniedError` and
        :class:`~naru.errors.StoreUnavailableError`.
        """
        key_id, secret_hash = read_authorization(authorization)
        now_ms = time.time_ns() // 10**6 if now_ms is None else now_ms
        answer = await self._call(
            # A key that was revoked a moment ago is revoked.
            self._client.get_item,
            Key=to_item({"meter": f"key#{key_id}"}),
            ConsistentRead=True,
        )
        if not (item := answer.get("Item")):
            raise unknown_key()
        meter = Meter(from_item(item))
        nothing = Demand("", now_ms, self._month(now_ms), worst_pico_usd=0, tokens=0, secret_hash=secret_hash)
        if (refusal := meter.refusal(nothing)) and refusal.reason in {"unknown", "expired", "disabled"}:
            raise refused(meter, refusal, nothing, self._zone)
        return ApiKey(
            key_id,
            headers_of(meter, now_ms),
            meter.item.get("may_route", False),
            max_parallel=meter.item["max_parallel"] * meter.shards,
        )

    # ── Admission ──────────────────────────────────────────────────────────────────────────────────────────

    async def admit(
        self,
        authorization: str | Proven | None,
        *,
        request_id: str,
        now_ms: int,
        model: str,
        worst_pico_usd: int,
        tokens: int,
        end_user: str | None = None,
        batch_id: str | None = None,
    ) -> Admission:
        """Sets aside what the request can cost at most, on every meter it must pass.

        Raises :class:`~naru.errors.AuthenticationError`, :class:`~naru.errors.PermissionDeniedError`,
        :class:`~naru.errors.RateLimitedError`, :class:`~naru.errors.QuotaExceededError` and
        :class:`~naru.errors.StoreUnavailableError`; nothing is set aside then.
        """
        key_id, secret_hash = read_authorization(authorization)
        age = Age(now_ms - arrived_at_ms(request_id))
        await self._end_remembered(key_id)
        demand = Demand(
            request_id=request_id,
            now_ms=now_ms,
            month=self._month(arrived_at_ms(request_id)),
            worst_pico_usd=worst_pico_usd,
            tokens=tokens,
        )
        of_key = replace(demand, secret_hash=secret_hash, model=model, batch_id=batch_id)
        leases: list[tuple[str, Lease]] = []
        headers: dict[str, str] = {}
        try:
            key = await self._admit(f"key#{key_id}", of_key, leases)
            headers = headers_of(key, now_ms)
            if end_user is not None and (limits := _user_limits(key)):
                await self._admit_user(key_id, end_user, limits, demand, leases)
            await self._admit(ORGANISATION, demand, leases, absent=new_item(ORGANISATION, self._organisation))
            if age.ms > ADMITTED_WITHIN_MS:
                raise too_old()
        except (Exception, CancelledError) as error:
            answered = isinstance(error, NaruError) and not isinstance(error, StoreUnavailableError)
            if isinstance(error, NaruError):
                error.headers = {**headers, **error.headers}
            await self._end_apart(Ending.releasing(leases, doubtful=not answered))
            raise
        models = key.item.get("models")
        return Admission(key_id, tuple(leases), headers, age, None if models is None else frozenset(models))

    async def _admit_user(
        self, key_id: str, end_user: str, limits: Limits, demand: Demand, leases: list[tuple[str, Lease]]
    ) -> None:
        """Admits on the meter of one end user, whose name is kept as a hash."""
        meter_id, former_id = (_user_meter_id(key_id, name) for name in (limited_name(end_user), end_user))
        item = new_item(meter_id, limits, key_id=key_id, expires_s=expiry_s(demand.now_ms))
        if meter_id != former_id and meter_id not in self._seen:
            item |= await self._spent_before(former_id)
        try:
            await self._admit(item["meter"], demand, leases, absent=item)
        except (QuotaExceededError, RateLimitedError):
            if not await self._follow(item["meter"], limits, demand.month):
                raise
            await self._admit(item["meter"], demand, leases, absent=item)
        else:
            await self._follow(item["meter"], limits, demand.month)

    async def _spent_before(self, former_id: str) -> dict[str, Any]:
        """What lies in the meter that an earlier release has named after the user's name as it was sent."""
        answer = await self._call(self._client.get_item, Key=to_item({"meter": former_id}))
        if not (found := answer.get("Item")):
            return {}
        former = from_item(found)
        months = {
            month: {**sums, "available_pico_usd": former["budget_pico_usd"] - sums["spent_pico_usd"]}
            for month, sums in former["months"].items()
        }
        return {"months": months, "budget_pico_usd": former["budget_pico_usd"]}

    async def _follow(self, meter_id: str, limits: Limits, month: str) -> bool:
        """Gives an end user's meter the limits that its key sets for users now; False if it has them."""
        meter = self._seen.get(meter_id)
        if meter is None or meter.limits == limits:
            return False
        change = Change(meter_id)
        change_limits([change], [meter], limits, month=month)
        try:
            self._remember(await self._update(meter_id, change.done()))
        except _ConditionFailedError as failed:
            # Somebody else has changed it, or the next request does.
            if failed.item is not None:
                self._remember(failed.item)
        return True

    async def settle(self, admission: Admission, *, cost_pico_usd: int, tokens: int | None) -> None:
        """Ends the leases: ``cost_pico_usd`` is spent, the rest comes back. Settling again changes nothing.

        ``tokens`` are those the provider counted, None where it did not say. Raises
        :class:`~naru.errors.StoreUnavailableError`; what is then left over is ended with the next request, or by the
        sweeper.
        """
        await self.end([Ending(meter_id, lease, cost_pico_usd, tokens) for meter_id, lease in admission.leases])

    async def release(self, admission: Admission) -> None:
        """Ends the leases of a request that reached no provider: everything comes back, now or with the next request."""
        await self._end_apart(Ending.releasing(admission.leases))

    async def finish(
        self, meter_id: str, lease: Lease, *, cost_pico_usd: int, tokens: int | None, refund_request: bool = False
    ) -> bool:
        """Ends one lease; False if it had been ended before."""
        meter = self._seen.get(meter_id) or _guess(meter_id, lease.month, lease.slot)
        for _ in range(_TRIES):
            update = meter.finish(lease, cost_pico_usd=cost_pico_usd, tokens=tokens, refund_request=refund_request)
            try:
                item = await self._update(meter_id, update)
            except _ConditionFailedError as failed:
                if failed.item is None:
                    return False
                meter = self._remember(failed.item)
                if lease.request_id not in meter.item["in_flight"]:
                    return False
            else:
                if self._on_spent is not None and cost_pico_usd:
                    await self._on_spent(Meter(from_item(item)), lease.month, cost_pico_usd)
                return True
        raise StoreUnavailableError("The gateway's meters are too busy.", log={"meter": meter_id})

    async def end(self, endings: Sequence[Ending]) -> None:
        """Ends leases, each on its own. Those that could not be ended are remembered.

        Raises :class:`~naru.errors.StoreUnavailableError`, when all have been tried.
        """
        results = await asyncio.gather(*map(self._end_or_remember, endings), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _end_or_remember(self, ending: Ending) -> None:
        left: Ending | None = ending
        try:
            was_there = await self.finish(
                ending.meter_id,
                ending.lease,
                cost_pico_usd=ending.cost_pico_usd,
                tokens=ending.tokens,
                refund_request=ending.refund_request,
            )
            # A lease that is not there yet may come after all, so it is looked for once more.
            left = replace(ending, doubtful=False) if ending.doubtful and not was_there else None
        finally:
            if left is not None:
                self._unended.add(left)

    async def _end_remembered(self, key_id: str) -> None:
        """Ends what could not be ended before, and waits only for what lies on meters that this key's requests pass."""
        mine: list[Ending] = []
        others: list[Ending] = []
        for ending in self._unended.take(_REMEMBERED_AT_ONCE):
            whole_id = ending.meter_id.partition("/")[0]
            is_mine = whole_id in {f"key#{key_id}", ORGANISATION} or whole_id.startswith(f"user#{key_id}#")
            (mine if is_mine else others).append(ending)
        self._begin_ending(others)
        await self._end_apart(mine)

    async def _end_apart(self, endings: Sequence[Ending]) -> None:
        """Ends leases in a task of its own, which also goes on when the request is cancelled or has waited enough."""
        if task := self._begin_ending(endings):
            await asyncio.wait({task}, timeout=_PATIENCE_S)

    def _begin_ending(self, endings: Sequence[Ending]) -> asyncio.Task[None] | None:
        if not endings:
            return None
        task = asyncio.create_task(self._end_quietly(endings))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        return task

    async def _end_quietly(self, endings: Sequence[Ending]) -> None:
        try:
            await self.end(endings)
        except StoreUnavailableError as error:
            facts = {"request_id": endings[0].lease.request_id, "remembered": len(self._unended), **error.log}
            logger.warning("leases not ended yet", extra=facts)

    async def _admit(
        self,
        meter_id: str,
        demand: Demand,
        leases: list[tuple[str, Lease]],
        *,
        absent: dict[str, Any] | None = None,
    ) -> Meter:
        """Admits on one shard of a meter; ``absent`` is the item to make where there is none.

        The lease is in ``leases`` afterwards. When this raises, one may be there that is not known to have been written.
        """
        for _ in range(_TRIES):
            asked = await self._ask_shards(meter_id, demand, leases, absent)
            if isinstance(asked, Meter):
                return asked
            # A shard that refuses for another reason as well would refuse with all the budget there is.
            nothing = replace(demand, worst_pico_usd=-UNLIMITED)
            poor = [meter.id for meter, refusal in asked if refusal.reason == "budget" and not meter.refusal(nothing)]
            if len(asked) == 1 or not poor or not await self._gather_budget(meter_id, len(asked), poor[0], demand):
                # Of several reasons the one that passes first.
                waits = [(refusal.retry_after_s or float("inf"), index) for index, (_, refusal) in enumerate(asked)]
                meter, refusal = asked[min(waits)[1]]
                unspent = sum(meter.unspent_pico_usd(demand.month) for meter, _ in asked)
                if refusal.reason == "budget" and unspent >= demand.worst_pico_usd:
                    # What is missing is not spent: requests in flight hold it, and give back what they do not use.
                    refusal = replace(refusal, retry_after_s=_LEASES_S)
                raise refused(meter, refusal, demand, self._zone)
        raise StoreUnavailableError("The gateway's meters are too busy. Try again.", log={"meter": meter_id})

    async def _ask_shards(
        self, meter_id: str, demand: Demand, leases: list[tuple[str, Lease]], absent: dict[str, Any] | None
    ) -> Meter | list[tuple[Meter, Refusal]]:
        """The shard that admits, or why none does; they are asked in turn, from a random one on."""
        known = self._seen.get(meter_id)
        shards = known.shards if known else 1
        first = self._rng.randrange(shards)
        refusals: list[tuple[Meter, Refusal]] = []
        tried: set[int] = set()
        while len(tried) < shards:
            shard = next(i % shards for i in range(first, first + shards) if i % shards not in tried)
            tried.add(shard)
            meter, refusal = await self._admit_shard(
                _shard_id(meter_id, shard), demand, leases, None if shard else absent
            )
            if refusal is None:
                return meter
            if refusal.reason in {"unknown", "expired", "disabled", "model"}:
                raise refused(meter, refusal, demand, self._zone)
            refusals.append((meter, refusal))
            shards = meter.shards
        return refusals

    async def _admit_shard(
        self, shard_id: str, demand: Demand, leases: list[tuple[str, Lease]], absent: dict[str, Any] | None
    ) -> tuple[Meter, Refusal | None]:
        meter = self._seen.get(shard_id)
        if meter is None or meter.refusal(demand):
            # No request is refused by a memory: ask for what is needed now, and let the meter say no.
            meter = _guess(shard_id, demand.month, demand.now_ms // SLOT_MS)
        for _ in range(_TRIES):
            lease, update = meter.admission(demand)
            # From here on it may be there: the write may happen and its answer be lost.
            leases.append((shard_id, lease))
            try:
                return self._remember(await self._update(shard_id, update)), None
            except _ConditionFailedError as failed:
                leases.pop()
                if failed.item is None:
                    if absent is None:
                        raise unknown_key() from None
                    await self._create(absent)
                    continue
                meter = self._remember(failed.item)
                if (held := meter.item["in_flight"].get(demand.request_id)) is not None:
                    # Our own write, whose answer got lost on the way.
                    leases.append((shard_id, Lease.from_values(demand.request_id, held)))
                    return meter, None
                if refusal := meter.refusal(demand):
                    return meter, refusal
        raise StoreUnavailableError("The gateway's meters are too busy. Try again.", log={"meter": shard_id})

    async def _gather_budget(self, meter_id: str, shards: int, into: str, demand: Demand) -> bool:
        """Moves what the shards have left into one of them, so that a budget is spent to the last request.

        Rare: only when each shard refuses, and what they have together would do.
        """
        ids = [_shard_id(meter_id, shard) for shard in range(shards)]
        try:
            answer = await self._call_service(
                self._client.transact_get_items,
                TransactItems=[{"Get": {"TableName": self._table, "Key": to_item({"meter": id_})}} for id_ in ids],
            )
            meters = [self._remember(response["Item"]) for response in answer["Responses"] if response.get("Item")]
            month = demand.month
            if closed := [meter for meter in meters if month not in meter.item["months"]]:
                await asyncio.gather(*(self._open_month(meter, month) for meter in closed))
                return True
            left = {meter.id: meter.available_pico_usd(month) for meter in meters}
            if into not in left or sum(max(0, rest) for rest in left.values()) < demand.worst_pico_usd:
                return False
            await self._move_budget({id_: rest for id_, rest in left.items() if id_ != into and rest > 0}, into, month)
        except self._client.exceptions.TransactionCanceledException:
            # Somebody was faster, or is about to write; what there is then is seen in the next round.
            await self._step_aside()
        return True

    async def _move_budget(self, moved: dict[str, int], into: str, month: str) -> None:
        path = "months.#month.available_pico_usd"
        moves = [(id_, f"SET {path} = {path} - :rest", f"{path} >= :rest", rest) for id_, rest in moved.items()]
        moves.append((into, f"SET {path} = {path} + :rest", f"attribute_exists({path})", sum(moved.values())))
        await self._call_service(
            self._client.transact_write_items,
            TransactItems=[
                {
                    "Update": {
                        "TableName": self._table,
                        "Key": to_item({"meter": id_}),
                        "UpdateExpression": update,
                        "ConditionExpression": condition,
                        "ExpressionAttributeNames": {"#month": month},
                        "ExpressionAttributeValues": to_item({":rest": rest}),
                    }
                }
                for id_, update, condition, rest in moves
            ],
        )

    async def _open_month(self, meter: Meter, month: str) -> None:
        try:
            self._remember(await self._update(meter.id, meter.opening(month)))
        except _ConditionFailedError:
            return  # opened by somebody else, or with another budget: the next round sees it

    def _month(self, at_ms: int) -> str:
        return business_day(at_ms, self._zone).isoformat()[:7]

    # ── DynamoDB ───────────────────────────────────────────────────────────────────────────────────────────

    async def _update(self, meter_id: str, update: Update) -> dict[str, Any]:
        """The item after the write.

        Raises :class:`_ConditionFailedError` with the item as it is.
        """
        from botocore.exceptions import ClientError

        for _ in range(_TRIES):
            try:
                answer = await self._call(
                    self._client.update_item,
                    Key=to_item({"meter": meter_id}),
                    UpdateExpression=update.update,
                    ConditionExpression=update.condition,
                    ExpressionAttributeNames=dict(update.names),
                    **({"ExpressionAttributeValues": to_item(update.values)} if update.values else {}),
                    ReturnValues="ALL_NEW",
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
            except ClientError as error:
                if error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                    raise _ConditionFailedError(error.response.get("Item")) from None  # type: ignore[arg-type]
                # A transaction holds the item, to gather a budget or to change a limit. boto3 does not try again.
                await self._step_aside()
            else:
                result: dict[str, Any] = answer["Attributes"]
                return result
        raise StoreUnavailableError("The gateway's meters are too busy. Try again.", log={"meter": meter_id})

    async def _step_aside(self) -> None:
        await asyncio.sleep(self._rng.uniform(0, 0.05))

    async def _create(self, item: dict[str, Any]) -> None:
        from botocore.exceptions import ClientError

        try:
            await self._call(
                self._client.put_item, Item=to_item(item), ConditionExpression="attribute_not_exists(meter)"
            )
        except ClientError:
            return  # somebody else has made it, which is as good

    async def _call(self, function: Any, **parameters: Any) -> Any:
        return await self._call_service(function, TableName=self._table, **parameters)

    async def _call_service(self, function: Any, **parameters: Any) -> Any:
        """One call; of its errors only those that others cause are let through: a condition, a transaction."""
        from botocore.exceptions import BotoCoreError, ClientError

        conditions = {
            "ConditionalCheckFailedException",
            "TransactionCanceledException",
            "TransactionConflictException",
        }
        try:
            return await call(function, **parameters)
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] in conditions:
                raise
            raise StoreUnavailableError(
                "The gateway cannot reach its meters at the moment. Try again shortly.",
                log={
                    "reason": f"{type(error).__name__} on {self._table}: {error}",
                    "advice": "Nothing is sent to a provider while DynamoDB does not answer. See the AWS Health Dashboard.",
                },
            ) from error

    def _remember(self, item: dict[str, Any]) -> Meter:
        """Keeps the last view of a meter, as a guess for the next write."""
        meter = Meter(from_item(item))
        if len(self._seen) > 10_000:
            self._seen.clear()
        self._seen[meter.id] = meter
        return meter


def too_old() -> StoreUnavailableError:
    """The answer to a request that was stopped for so long that others may not reckon with it any more."""
    return StoreUnavailableError(
        "This request was held up in the gateway for too long and was not sent to a model. Send it again.",
        code="request_held_up",
    )


def _guess(meter_id: str, month: str, slot: int) -> Meter:
    """A meter nobody has looked at, as it probably is: limited by the minute, and already in use."""
    item = new_item(meter_id, Limits(rpm=1, tpm=1))
    return Meter(item | {"slot": slot, "months": {month: {"available_pico_usd": 0, "spent_pico_usd": 0}}})


def _shard_id(meter_id: str, shard: int) -> str:
    return f"{meter_id}/{shard}" if shard else meter_id


def _user_meter_id(key_id: str, name: str) -> str:
    return f"user#{key_id}#{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _user_limits(key: Meter) -> Limits | None:
    """What each end user of a key is allowed; None where the key does not limit them."""
    limits = Limits(
        budget_pico_usd=key.item.get("user_budget_pico_usd", UNLIMITED), rpm=key.item.get("user_rpm", UNLIMITED)
    )
    return limits if limits != Limits() else None
