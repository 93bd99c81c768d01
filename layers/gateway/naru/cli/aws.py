"""``naru admin`` and ``naru providers``: what is done with AWS credentials, past the admin API."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from naru.api_keys import new_admin_key_item
from naru.cli.output import CommandError, MisuseError, moment, note, show_secret
from naru.errors import StoreUnavailableError
from naru.meter_changes import Change
from naru.meter_state import Meter
from naru.meter_store import MeterStore

T = TypeVar("T")

# Whoever has a local run in the folder has not asked for the account that the shell is signed in to.
_EMULATED = {"region_name": "ap-northeast-2", "aws_access_key_id": "test", "aws_secret_access_key": "test"}


def init_admin(arguments: argparse.Namespace) -> None:
    """Makes the admin key of a deployed gateway. A second one only in place of the first."""
    name = arguments.name.strip()
    if not 1 <= len(name) <= 100:
        raise MisuseError("the name must have 1 to 100 characters")
    stack = find_stack(arguments)
    store = MeterStore(stack.client("dynamodb"), stack.output("MeterTable"))
    existing = [item for item in _run(store, "items", "admin#") if item["enabled"]]
    if existing and not arguments.replace:
        found = ", ".join(f"{item['name']!r}, made {moment(item['created_at_ms'] // 1000)}" for item in existing)
        raise CommandError(
            f"the stack {arguments.stack_name} has an admin key ({found}). If it is lost, or somebody else has it: "
            "naru admin init --replace"
        )
    item, secret = new_admin_key_item(name, now_ms=time.time_ns() // 10**6)
    _run(store, "put", [item])
    for old in existing:
        _switch_off(store, old["meter"])
    show_secret(
        secret,
        *(f"{old['name']!r} no longer opens anything." for old in existing),
        "The admin key is shown this once. To use it:",
        f"  export NARU_BASE_URL={stack.output('BaseUrl')} NARU_ADMIN_KEY=…",
    )


def set_provider_key(arguments: argparse.Namespace) -> None:
    """Puts a provider's key into the secret, beside the others."""
    name: str = arguments.provider
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise MisuseError(
            f"{name!r} cannot be the name of a provider's key: it is the catalog's 'secret', as in holysheep"
        )
    stack = find_stack(arguments)
    if not stack.parameters.get("CatalogUri") and name not in (known := _built_in_names()):
        raise MisuseError(f"no provider of the catalog has the key {name!r}; there are {', '.join(known)}")
    key = _read_key(name)
    client, secret_id = stack.client("secretsmanager"), stack.output("ProviderKeysSecret")
    text = call_aws(client.get_secret_value, SecretId=secret_id).get("SecretString") or "{}"
    try:
        keys = json.loads(text)
        if not isinstance(keys, dict):
            raise TypeError
    except (ValueError, TypeError):
        raise CommandError(f"the secret {secret_id} holds something that is not a JSON object; mend it first") from None
    call_aws(client.put_secret_value, SecretId=secret_id, SecretString=json.dumps({**keys, name: key}))
    note(f"The key of {name} is stored. The gateway reads it within five minutes.")


def _read_key(name: str) -> str:
    """From a prompt without echo, or from a pipe; never from the command line, which others can read."""
    try:
        key = getpass.getpass(f"Key of {name} (not shown): ") if sys.stdin.isatty() else sys.stdin.read()
    except (EOFError, UnicodeDecodeError):
        key = ""
    key = key.strip()
    if not key:
        raise MisuseError(f'there is no key on stdin: printf %s "$KEY" | naru providers set {name}')
    if not re.fullmatch(r"[!-~]+", key):
        raise MisuseError("the key holds spaces, line breaks or letters that no key has; copy it anew")
    return key


def _built_in_names() -> Sequence[str]:
    from naru.catalog import load

    return sorted({provider.secret for provider in load().providers.values()})


# ── AWS ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Stack:
    """A deployed gateway, and a session that may look at it."""

    name: str
    session: Any
    outputs: Mapping[str, str]
    parameters: Mapping[str, str]
    endpoint_url: str | None = None
    """Of an emulator."""

    def client(self, service: str) -> Any:
        """A boto3 client."""
        return self.session.client(service, endpoint_url=self.endpoint_url)

    def output(self, name: str) -> str:
        """An output of the stack. Raises :class:`~naru.cli.output.CommandError` where there is none of that name."""
        try:
            return self.outputs[name]
        except KeyError:
            raise CommandError(
                f"the stack {self.name} has no output {name}: is it a gateway of Naru's, and up to date?"
            ) from None


def find_stack(arguments: argparse.Namespace, *, emulator_url: str | None = None) -> Stack:
    """The stack that ``--stack-name`` and ``--region`` name; that of a local run, where its emulator is given.

    Raises :class:`~naru.cli.output.CommandError`: no boto3, no credentials, no such stack.
    """
    try:
        import boto3
    except ModuleNotFoundError:
        raise CommandError("this command needs boto3: pip install boto3") from None

    session = call_aws(boto3.Session, **(_EMULATED if emulator_url else {"region_name": arguments.region}))
    client = call_aws(session.client, "cloudformation", endpoint_url=emulator_url)
    described = call_aws(client.describe_stacks, StackName=arguments.stack_name)["Stacks"][0]
    return Stack(
        arguments.stack_name,
        session,
        {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])},
        {given["ParameterKey"]: given["ParameterValue"] for given in described.get("Parameters", [])},
        emulator_url,
    )


def call_aws(function: Callable[..., T], *positional: Any, **named: Any) -> T:
    """What a call of boto3 returns; its failures as :class:`~naru.cli.output.CommandError`."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    try:
        return function(*positional, **named)
    except NoRegionError:
        raise MisuseError("which region? --region, or AWS_REGION") from None
    except NoCredentialsError:
        raise CommandError("there are no AWS credentials; sign in first (aws sso login, or AWS_PROFILE)") from None
    except (BotoCoreError, ClientError) as error:
        raise CommandError(f"AWS says: {error}") from None


def _run(store: MeterStore, method: str, *arguments: Any) -> Any:
    try:
        return asyncio.run(getattr(store, method)(*arguments))
    except StoreUnavailableError as error:
        raise CommandError(error.log.get("reason", error.message)) from None


def _switch_off(store: MeterStore, meter_id: str) -> None:
    def plan(_: Sequence[Meter], changes: Sequence[Change]) -> None:
        changes[0].set("enabled", to=False)

    _run(store, "change", lambda: store.shards(meter_id), plan)
