"""Meters: the items that can refuse a request.

An API key is a meter. Its item is found by the SHA-256 of the key, so there is nothing to look up first.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from naru.errors import AuthenticationError, PermissionDeniedError, StoreUnavailableError
from naru.keys import hash_secret

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

_BEARER = "bearer "


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who is calling."""

    key_id: str


class Meters:
    """Lets requests in."""

    def __init__(self, client: DynamoDBClient, table: str) -> None:
        self._client = client
        self._table = table

    async def authenticate(self, authorization: str | None) -> ApiKey:
        """The API key that the Authorization header proves.

        Raises :class:`~naru.errors.AuthenticationError`, :class:`~naru.errors.PermissionDeniedError` for a key that
        is switched off, and :class:`~naru.errors.StoreUnavailableError`.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        if not authorization or not authorization.lower().startswith(_BEARER):
            raise AuthenticationError(
                "There is no API key in this request. Send it in the header 'Authorization: Bearer sk-naru-…'."
            )
        secret = authorization[len(_BEARER) :].strip()
        try:
            answer = await asyncio.to_thread(
                self._client.get_item,
                TableName=self._table,
                Key={"meter": {"S": f"key#{hash_secret(secret)}"}},
                ConsistentRead=True,  # a key that was revoked a moment ago is revoked
            )
        except (BotoCoreError, ClientError) as error:
            raise StoreUnavailableError(
                "The gateway cannot check API keys at the moment. Try again shortly.",
                log={"reason": f"{type(error).__name__} while reading {self._table}: {error}"},
            ) from error
        if not (item := answer.get("Item")):
            raise AuthenticationError(
                "The API key is not known here. Check that it is a Naru key (sk-naru-…), complete and for this gateway; "
                "a provider's own key does not open Naru."
            )
        if not item["enabled"]["BOOL"]:
            raise PermissionDeniedError("This API key is switched off. Ask the operator.", code="api_key_disabled")
        return ApiKey(key_id=item["key_id"]["S"])
