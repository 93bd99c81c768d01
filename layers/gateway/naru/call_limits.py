"""How often a key may ask for what spends nothing: usage, files, batches. Budgets and ``rpm`` are for model requests.

One item a key in the table of meters, ``calls#<key id>``, and one write a call: it counts within a minute, and the first
call of a minute begins anew. Who is refused has written nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.aws_calls import call
from naru.errors import RateLimitedError, StoreUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

UPLOAD = 10
"""What a call counts that stores bytes or makes work."""
_MINUTE_MS = 60_000
_TRIES = 5
_KEPT_S = 86_400


class CallLimits:
    """Counts calls of one kind, at most ``per_minute`` of each key."""

    def __init__(self, client: DynamoDBClient, table: str, kind: str, *, per_minute: int) -> None:
        self._client = client
        self._table = table
        self._kind = kind
        self.per_minute = per_minute

    async def count(self, key_id: str, *, now_ms: int, weight: int = 1) -> None:
        """Counts a call of a key that has proved itself.

        Raises :class:`~naru.errors.RateLimitedError` for one too many, and
        :class:`~naru.errors.StoreUnavailableError`.
        """
        minute = now_ms // _MINUTE_MS
        most = max(0, self.per_minute - weight)
        for _ in range(_TRIES):
            values = {":minute": minute, ":most": most, ":weight": weight}
            goes_on = "#minute = :minute AND #count <= :most"
            if (item := await self._update(key_id, "SET #count = #count + :weight", goes_on, values)) is None:
                return
            # By a clock that is ahead of ours the next minute may have begun.
            known = item.get(f"{self._kind}_minute", -1)
            if known < minute:
                values = {":minute": minute, ":weight": weight, ":expires": now_ms // 1000 + _KEPT_S}
                changes = "SET #minute = :minute, #count = :weight, expires_s = :expires"
                begins = "attribute_not_exists(#minute) OR #minute < :minute"
                if await self._update(key_id, changes, begins, values) is None:
                    return
            elif known == minute:
                break
            else:
                minute = known
        wait_s = max(1.0, ((minute + 1) * _MINUTE_MS - now_ms) / 1000)
        raise RateLimitedError(
            f"This API key has made its {self.per_minute} calls of a minute to /{self._kind}; a call that uploads or "
            f"submits something counts as {UPLOAD}. Try again after the time in Retry-After.",
            retry_after_s=min(wait_s, 60.0),
        )

    async def _update(self, key_id: str, changes: str, condition: str, values: dict[str, int]) -> dict[str, Any] | None:
        """None where the write was made; else what stands there."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            await call(
                self._client.update_item,
                TableName=self._table,
                Key=to_item({"meter": f"calls#{key_id}"}),
                UpdateExpression=changes,
                ConditionExpression=condition,
                ExpressionAttributeNames={"#minute": f"{self._kind}_minute", "#count": f"{self._kind}_count"},
                ExpressionAttributeValues=to_item(values),
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except self._client.exceptions.ConditionalCheckFailedException as failed:
            item: Any = failed.response.get("Item") or {}
            return from_item(item)
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot reach its meters at the moment. Try again shortly.",
                log={"reason": f"{type(error).__name__} on {self._table}: {error}"},
            ) from error
        return None
