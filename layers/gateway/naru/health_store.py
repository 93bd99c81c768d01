"""The health of deployments in DynamoDB: read by many at once, written one at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from naru.attributes import from_item, to_item
from naru.aws_calls import call
from naru.health_state import State, Write, difference

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

_TRIES = 12
_JITTER_S = 0.05
_KEYS_PER_READ = 100


class HealthStoreError(Exception):
    """DynamoDB does not answer, or has no time. Requests go on without it."""


class RefusedWriteError(Exception):
    """A condition does not hold; ``state`` is what is there now."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state


class HealthStore:
    """Every method raises :class:`HealthStoreError`."""

    def __init__(self, client: DynamoDBClient, table: str, *, kept_s: int, rng: random.Random) -> None:
        self._client = client
        self._table = table
        self._kept_s = kept_s
        self._rng = rng

    async def read(self, deployments: Sequence[str]) -> dict[str, State]:
        """What is known, up to about a second ago; deployments of which nothing is known are healthy."""
        found = {deployment: State(deployment) for deployment in deployments}
        for begin in range(0, len(deployments), _KEYS_PER_READ):
            keys = [to_item({"deployment": name}) for name in deployments[begin : begin + _KEYS_PER_READ]]
            answer = await self._call(self._client.batch_get_item, RequestItems={self._table: {"Keys": keys}})
            if answer.get("UnprocessedKeys"):
                raise HealthStoreError(f"{self._table} is throttled")
            for item in answer["Responses"].get(self._table, []):
                state = State.from_values(from_item(item))
                found[state.deployment] = state
        return found

    async def change(
        self, seen: State, plan: Callable[[State], State | None], *, now_ms: int, once: bool = False
    ) -> State:
        """Plans and writes, again until nobody came in between; the state afterwards. A plan of None changes nothing.

        ``once`` is for changes that somebody else will make if this one is too late.
        """
        for attempt in range(_TRIES):
            after = plan(seen)
            if after is None or after == seen:
                return seen
            try:
                return await self.become(seen, after, now_ms=now_ms)
            except RefusedWriteError as refused:
                seen = refused.state
                if once:
                    return seen
                if attempt:
                    await asyncio.sleep(self._rng.uniform(0, _JITTER_S))
        raise HealthStoreError(f"the state of {seen.deployment} changes all the time")

    async def become(self, seen: State, after: State, *, now_ms: int) -> State:
        """The state after a write of ``after``, if it still is as it was seen.

        Raises :class:`RefusedWriteError` besides.
        """
        after = replace(after, expires_s=now_ms // 1000 + self._kept_s)
        if seen.version:
            return await self.write(seen.deployment, difference(seen, after))
        after = replace(after, version=1)
        await self._conditional(
            seen.deployment,
            self._client.put_item,
            Item=to_item(after.values()),
            ConditionExpression="attribute_not_exists(deployment)",
        )
        return after

    async def write(self, deployment: str, write: Write) -> State:
        """The state after the write.

        Raises :class:`RefusedWriteError` besides.
        """
        answer = await self._conditional(
            deployment,
            self._client.update_item,
            Key=to_item({"deployment": deployment}),
            UpdateExpression=write.update,
            ConditionExpression=write.condition,
            **({"ExpressionAttributeNames": dict(write.names)} if write.names else {}),
            **({"ExpressionAttributeValues": to_item(write.values)} if write.values else {}),
            ReturnValues="ALL_NEW",
        )
        return State.from_values(from_item(answer["Attributes"]))

    async def _conditional(self, deployment: str, function: Any, **parameters: Any) -> Any:
        from botocore.exceptions import ClientError

        try:
            return await self._call(
                function, TableName=self._table, ReturnValuesOnConditionCheckFailure="ALL_OLD", **parameters
            )
        except ClientError as error:
            item: Any = error.response.get("Item")
            raise RefusedWriteError(State.from_values(from_item(item)) if item else State(deployment)) from None

    async def _call(self, function: Any, **parameters: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return await call(function, **parameters)
        except (BotoCoreError, ClientError) as error:
            if isinstance(error, ClientError) and error.response["Error"]["Code"] == "ConditionalCheckFailedException":
                raise
            raise HealthStoreError(f"{type(error).__name__} on {self._table}: {error}") from error
