"""The keys that open the providers, from one secret in Secrets Manager."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import SecretStr

from naru.aws_calls import call
from naru.errors import StoreUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager.client import SecretsManagerClient

_FRESH_S = 300.0
_IMPATIENT_S = 5.0


class ProviderKeys:
    """Reads the secret once and again every five minutes, so that a rotated key needs no deployment.

    A key that is missing, or that a provider refuses, is looked up again at once, but not more often than every five
    seconds.
    """

    def __init__(self, client: SecretsManagerClient, secret_id: str) -> None:
        self._client = client
        self._secret_id = secret_id
        self._keys: dict[str, SecretStr] = {}
        self._read_at_s = float("-inf")

    @property
    def secret_id(self) -> str:
        """The name or ARN of the secret, for messages to the operator."""
        return self._secret_id

    async def get(self, name: str) -> SecretStr | None:
        """The key in the field ``name`` of the secret; None where there is none.

        Raises :class:`~naru.errors.StoreUnavailableError` when Secrets Manager does not answer and nothing is
        known from before.
        """
        age_s = time.monotonic() - self._read_at_s
        if age_s > _FRESH_S or (name not in self._keys and age_s > _IMPATIENT_S):
            await self._read()
        return self._keys.get(name)

    async def is_renewed(self, name: str, *, refused: str) -> bool:
        """Whether the field ``name`` holds another key by now than the one that a provider has just refused; never
        raises.
        """
        age_s = time.monotonic() - self._read_at_s
        if self._text(name) == refused and age_s > _IMPATIENT_S:
            with suppress(StoreUnavailableError):
                await self._read()
        return self._text(name) not in {None, refused}

    def _text(self, name: str) -> str | None:
        key = self._keys.get(name)
        return None if key is None else key.get_secret_value()

    async def _read(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = await call(self._client.get_secret_value, SecretId=self._secret_id)
            fields = json.loads(answer.get("SecretString") or "{}")
            if not isinstance(fields, dict):
                raise TypeError("not a JSON object")
        except (BotoCoreError, ClientError, ValueError, TypeError) as error:
            if self._keys:
                # An old key is better than none; the next request tries again.
                return
            raise StoreUnavailableError(
                "The gateway cannot read its provider keys at the moment. Try again shortly.",
                log={
                    "reason": f"{type(error).__name__} while reading the secret {self._secret_id}",
                    "advice": "Check that the secret exists, holds a JSON object and that the function may read it.",
                },
            ) from error
        # What cannot stand in a header is no key, and is reported as missing.
        self._keys = {
            name: SecretStr(key.strip())
            for name, key in fields.items()
            if isinstance(key, str) and key.strip().isascii() and key.strip().isprintable() and key.strip()
        }
        self._read_at_s = time.monotonic()
