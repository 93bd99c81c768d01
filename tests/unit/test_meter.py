import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.stub import Stubber

from naru.errors import AuthenticationError, PermissionDeniedError, StoreUnavailableError
from naru.keys import PREFIX, hash_secret, new_secret
from naru.meter import ApiKey, Meters
from tests.moto_tables import tables

SECRET = new_secret()


@pytest.fixture
def dynamodb() -> Iterator[Any]:
    with tables("MeterTable") as client:
        for secret, key_id, enabled in [(SECRET, "key_1", True), ("sk-naru-off", "key_2", False)]:
            client.put_item(
                TableName="MeterTable",
                Item={
                    "meter": {"S": f"key#{hash_secret(secret)}"},
                    "key_id": {"S": key_id},
                    "enabled": {"BOOL": enabled},
                },
            )
        yield client


def authenticate(dynamodb: Any, authorization: str | None) -> ApiKey:
    return asyncio.run(Meters(dynamodb, "MeterTable").authenticate(authorization))


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_a_key_is_known_by_its_hash(dynamodb: Any, scheme: str) -> None:
    assert authenticate(dynamodb, scheme + SECRET) == ApiKey(key_id="key_1")


@pytest.mark.parametrize("header", [None, "", "Basic abc", "sk-naru-without-scheme"])
def test_a_request_without_a_key_is_told_how_to_send_one(dynamodb: Any, header: str | None) -> None:
    with pytest.raises(AuthenticationError, match="Authorization: Bearer sk-naru-"):
        authenticate(dynamodb, header)


@pytest.mark.parametrize("wrong", ["sk-naru-wrong", "", "{:.50}", "{}x", "\udfff", "키"])
def test_a_wrong_key_is_refused(dynamodb: Any, wrong: str) -> None:
    secret = wrong.format(SECRET)
    with pytest.raises(AuthenticationError, match="not known here") as refused:
        authenticate(dynamodb, f"Bearer {secret}")
    assert refused.value.body()["error"]["code"] == "invalid_api_key"


def test_a_key_that_is_switched_off_is_refused_as_such(dynamodb: Any) -> None:
    with pytest.raises(PermissionDeniedError) as refused:
        authenticate(dynamodb, "Bearer sk-naru-off")
    assert refused.value.http_status == 403


def test_a_store_that_fails_lets_nobody_in(dynamodb: Any) -> None:
    with Stubber(dynamodb) as stub:
        stub.add_client_error("get_item", "InternalServerError", http_status_code=500)
        with pytest.raises(StoreUnavailableError) as failed:
            authenticate(dynamodb, f"Bearer {SECRET}")
    assert (failed.value.http_status, failed.value.should_retry) == (503, True)


def test_keys_are_long_and_never_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith(PREFIX) and len(secret) == len(PREFIX) + 43 for secret in secrets)
