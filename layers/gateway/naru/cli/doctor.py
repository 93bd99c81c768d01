"""``naru doctor``: looks at a gateway from outside and, with AWS credentials, from inside; says what is wrong, a line each.

It changes nothing, costs next to nothing, and shows no secret.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import httpx

from naru.amounts import read_json, to_usd
from naru.attributes import from_item
from naru.catalog import Catalog, load, parse
from naru.cli.aws import Stack, call_aws, find_stack
from naru.cli.output import CommandError, MisuseError, moment, show, show_json
from naru.cli.target import ADMIN_KEY, Target, find_target
from naru.errors import CatalogError
from naru.ledger import SHARDS, partition
from naru.meter_state import Meter
from naru.request_ids import arrived_at_ms

_TIMEOUT_S = 35.0
_SKEW_S = 60.0  # AWS refuses signatures after five minutes; a Retry-After is misread long before
_SLOW_S = 5.0
_NEARLY_SPENT = Decimal("0.9")
_SWEPT_BY_MS = 45 * 60 * 1000  # a request lives 15 minutes; the sweeper comes every five
_CONCURRENCY = 100  # AWS gives new accounts 10
_SHOWN = 3

Verdict = Literal["ok", "warn", "FAIL", "skip"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``skip`` is what could not be: no verdict."""

    verdict: Verdict
    what: str
    says: str


def run(arguments: argparse.Namespace) -> None:
    """Prints what is found. Raises :class:`~naru.cli.output.CommandError` where something is wrong."""
    findings = list(examine(arguments))
    if arguments.json:
        show_json({"object": "doctor", "data": [_as_json(finding) for finding in findings]})
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            show(f"{finding.verdict:<4}  {finding.what:<{width}}  {finding.says}")
    if failed := [finding.what for finding in findings if finding.verdict == "FAIL"]:
        raise CommandError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")
    if all(finding.verdict == "skip" for finding in findings):
        raise CommandError("nothing could be looked at")


def examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    """All checks, from outside to inside."""
    emulator_url = None
    try:
        target = find_target(ADMIN_KEY, arguments.base_url, arguments.admin_key, os.environ, Path.cwd())
    except MisuseError as error:
        yield Finding("skip", "gateway", str(error))
    else:
        yield from _over_http(target)
        emulator_url = _emulator_of(target)
    try:
        stack = find_stack(arguments, emulator_url=emulator_url)
    except CommandError as error:
        yield Finding("skip", "stack", f"its resources were not looked at: {error}")
        return
    yield from _in_aws(stack)


def _emulator_of(target: Target) -> str | None:
    """Where the AWS of a local run is; None for a gateway that is none."""
    file = Path(target.source)
    if file.name != "local.json" or not file.is_file():
        return None
    url = json.loads(file.read_text(encoding="utf-8")).get("emulator_url")
    return url if isinstance(url, str) else None


def _as_json(finding: Finding) -> dict[str, str]:
    return {"verdict": finding.verdict.lower(), "what": finding.what, "says": finding.says}


# ── From outside ───────────────────────────────────────────────────────────────────────────────────────────


def _over_http(target: Target) -> Iterator[Finding]:
    with httpx.Client(timeout=_TIMEOUT_S, headers={"accept": "application/json"}) as client:
        began_s = time.monotonic()
        try:
            health = client.get(f"{target.base_url}/health")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            says = f"{target.base_url} cannot be reached ({error or type(error).__name__}); the address is from {target.source}"
            yield Finding("FAIL", "gateway", says)
            return
        took_s = time.monotonic() - began_s
        if health.status_code != 200 or _json(health) != {"status": "ok"}:
            says = f"{target.base_url}/health answers {health.status_code} and is no gateway of Naru's; the base URL ends in /v1"
            yield Finding("FAIL", "gateway", says)
            return
        slow = f"; slower than {_SLOW_S:.0f} s, even for a cold start: give the function more memory"
        says = f"{target.base_url} answers in {took_s * 1000:.0f} ms"
        yield Finding("warn" if took_s > _SLOW_S else "ok", "gateway", says + (slow if took_s > _SLOW_S else ""))
        yield from _clock(health.headers.get("date"), "the gateway")
        stranger = client.get(f"{target.base_url}/models")
        yield (
            Finding("ok", "door", "without a key there is no way in")
            if stranger.status_code == 401
            else Finding("FAIL", "door", f"GET /models without a key answers {stranger.status_code}, and must say 401")
        )
        client.headers["authorization"] = f"Bearer {target.key}"
        yield from _admin(client, target)


def _clock(date_header: str | None, whose: str) -> Iterator[Finding]:
    try:
        skew_s = time.time() - parsedate_to_datetime(date_header or "").timestamp()
    except ValueError:
        yield Finding("skip", "clock", f"{whose} does not say what time it is")
        return
    if abs(skew_s) > _SKEW_S:
        way = "ahead of" if skew_s > 0 else "behind"
        says = f"this machine is {abs(skew_s):.0f} s {way} {whose}; set the clock, or AWS will refuse what it signs"
        yield Finding("FAIL", "clock", says)
    else:
        yield Finding("ok", "clock", f"this machine and {whose} agree within {max(1.0, abs(skew_s)):.0f} s")


def _admin(client: httpx.Client, target: Target) -> Iterator[Finding]:
    keys_url, params = f"{target.base_url}/admin/keys", {"limit": "100"}
    try:
        organisation = client.get(f"{target.base_url}/admin/organization")
        listing = client.get(keys_url, params=params)
        # A page that is all of revoked keys says nothing of the others.
        while listing.status_code == 200 and _has_active_behind(page := _json(listing)):
            listing = client.get(keys_url, params={**params, "after": page["last_id"]})
    except httpx.HTTPError as error:
        yield Finding("FAIL", "admin key", f"the admin API does not answer ({error or type(error).__name__})")
        return
    for answer in (organisation, listing):
        if answer.status_code != 200:
            said = _json(answer)
            refusal = said.get("error") if isinstance(said, dict) else None
            message = refusal.get("message") if isinstance(refusal, dict) else f"status {answer.status_code}"
            yield Finding("FAIL", "admin key", f"{message} (the admin key is from {target.source})")
            return
    yield Finding("ok", "admin key", f"opens the admin API (from {target.source})")
    yield _budget(_json(organisation))
    yield _keys(_json(listing))


def _has_active_behind(page: Any) -> bool:
    return page["has_more"] is True and not any(key["status"] == "active" for key in page["data"])


def _budget(organisation: Mapping[str, Any]) -> Finding:
    budget, spent = organisation["budget_usd"], organisation["spent_usd"]
    if budget is None:
        return Finding("warn", "budget", "the organisation has no limit; 'naru budget set 500' gives it one")
    says = f"{spent:,f} of {budget:,f} USD spent in {organisation['month']}"
    if organisation["available_usd"] <= 0:
        return Finding("FAIL", "budget", f"{says}: every request is refused; 'naru budget set' raises it")
    if spent >= budget * _NEARLY_SPENT:
        return Finding("warn", "budget", f"{says}; it begins anew {moment(organisation['budget_resets_at'])}")
    return Finding("ok", "budget", says)


def _keys(listing: Mapping[str, Any]) -> Finding:
    active = [key for key in listing["data"] if key["status"] == "active"]
    if not active:
        return Finding("FAIL", "keys", "there is no active key, so nobody can call; 'naru keys create NAME' makes one")
    spent = [key["name"] for key in active if key["available_usd"] is not None and key["available_usd"] <= 0]
    if spent:
        return Finding("warn", "keys", f"{len(active)} active; the month's budget is gone for {_some(spent)}")
    soon_s = time.time() + 7 * 86_400
    ending = [key["name"] for key in active if key["expires_at"] is not None and key["expires_at"] < soon_s]
    if ending:
        return Finding("warn", "keys", f"{len(active)} active; within a week ends {_some(ending)}")
    return Finding("ok", "keys", f"{len(active)}{' or more' if listing['has_more'] else ''} active")


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _json(answer: httpx.Response) -> Any:
    try:
        return read_json(answer.content)
    except ValueError:
        return None


# ── From inside ────────────────────────────────────────────────────────────────────────────────────────────


def _in_aws(stack: Stack) -> Iterator[Finding]:
    checks: tuple[tuple[str, Callable[[_Inside], Iterator[Finding]]], ...] = (
        ("stack", _stack_state),
        ("catalog", _catalog),
        ("provider keys", _provider_keys),
        ("tables", _tables),
        ("leases", _leases),
        ("dead letters", _dead_letters),
        ("alarms", _alarms),
        ("report", _last_report),
        ("concurrency", _concurrency),
    )
    inside = _Inside(stack)
    for name, check in checks:
        try:
            yield from check(inside)
        except CommandError as error:
            # One permission that is missing must not hide what the others can see.
            yield Finding("skip", name, str(error))


class _Inside:
    """What several checks need of a stack, looked up once."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._resources: list[Mapping[str, Any]] | None = None
        self.catalog: Catalog | None = None

    def call(self, service: str, method: str, **parameters: Any) -> Any:
        """One call of AWS. Raises :class:`~naru.cli.output.CommandError`."""
        return call_aws(getattr(self.stack.client(service), method), **parameters)

    def of_type(self, kind: str) -> dict[str, str]:
        """Physical ids of the stack's resources of a type, by logical id."""
        if self._resources is None:
            pages = self.stack.client("cloudformation").get_paginator("list_stack_resources")
            found = call_aws(lambda: list(pages.paginate(StackName=self.stack.name)))
            self._resources = [each for page in found for each in page["StackResourceSummaries"]]
        return {
            each["LogicalResourceId"]: each["PhysicalResourceId"]
            for each in self._resources
            if each["ResourceType"] == kind and each.get("PhysicalResourceId")
        }


def _stack_state(inside: _Inside) -> Iterator[Finding]:
    status = inside.call("cloudformation", "describe_stacks", StackName=inside.stack.name)["Stacks"][0]["StackStatus"]
    if status in {"CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE"}:
        yield Finding("ok", "stack", f"{inside.stack.name} is {status}")
    elif status in {"UPDATE_ROLLBACK_COMPLETE", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"} or status.endswith("PROGRESS"):
        yield Finding("warn", "stack", f"{inside.stack.name} is {status}: the last update did not go through, or runs")
    else:
        yield Finding("FAIL", "stack", f"{inside.stack.name} is {status}; CloudFormation's events say why")


def _catalog(inside: _Inside) -> Iterator[Finding]:
    uri = inside.stack.parameters.get("CatalogUri", "")
    try:
        if uri:
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            body = inside.call("s3", "get_object", Bucket=bucket, Key=key)["Body"].read()
            inside.catalog = parse(body.decode(), source=uri)
        else:
            inside.catalog = load()
    except (CatalogError, UnicodeDecodeError) as error:
        yield Finding(
            "FAIL", "catalog", f"{error}; functions go on with the last one that was right, new ones have none"
        )
        return
    version, models = inside.catalog.version, len(inside.catalog.models)
    yield Finding("ok", "catalog", f"{uri or 'built in'}, version {version}, {models} models")


def _provider_keys(inside: _Inside) -> Iterator[Finding]:
    secret_id = inside.stack.output("ProviderKeysSecret")
    text = inside.call("secretsmanager", "get_secret_value", SecretId=secret_id).get("SecretString") or "{}"
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        yield Finding("FAIL", "provider keys", f"the secret {secret_id} is not a JSON object")
        return
    if inside.catalog is None:
        yield Finding("skip", "provider keys", "the catalog that names them cannot be read")
        return
    used = {deployment.provider for model in inside.catalog.models.values() for deployment in model.deployments}
    names = sorted({inside.catalog.providers[provider].secret for provider in used})
    usable = [name for name in names if isinstance(fields.get(name), str) and fields[name].strip().isascii()]
    usable = [name for name in usable if fields[name].strip().isprintable() and fields[name].strip()]
    missing = [name for name in names if name not in usable]
    if not missing:
        yield Finding("ok", "provider keys", f"set: {', '.join(names)}")
    else:
        mend = "; ".join(f"naru providers set {name}" for name in missing)
        verdict: Verdict = "warn" if usable else "FAIL"
        says = f"none that could be sent for {', '.join(missing)}, whose models answer 502: {mend}"
        yield Finding(verdict, "provider keys", says)


def _tables(inside: _Inside) -> Iterator[Finding]:
    tables = inside.of_type("AWS::DynamoDB::Table")
    wrong = [f"{logical} is not in the stack" for logical in ("LedgerTable", "MeterTable") if logical not in tables]
    for logical, name in tables.items():
        try:
            status = inside.call("dynamodb", "describe_table", TableName=name)["Table"]["TableStatus"]
        except CommandError as error:
            wrong.append(f"{logical}: {error}")
            continue
        if status not in {"ACTIVE", "UPDATING"}:
            wrong.append(f"{logical} ({name}) is {status}")
        elif logical in {"LedgerTable", "MeterTable"} and not _can_be_restored(inside, name):
            wrong.append(f"{logical} ({name}) has no point-in-time recovery: deploy again, or switch it on")
    if wrong:
        yield Finding("FAIL", "tables", "; ".join(wrong))
    else:
        yield Finding("ok", "tables", f"{len(tables)} are there; the ledger and the meters can be restored")


def _can_be_restored(inside: _Inside, table: str) -> bool:
    if inside.stack.endpoint_url is not None:
        return True  # an emulator keeps no backups
    answer = inside.call("dynamodb", "describe_continuous_backups", TableName=table)
    recovery = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    return bool(recovery.get("PointInTimeRecoveryStatus") == "ENABLED")


def _leases(inside: _Inside) -> Iterator[Finding]:
    """Leases of dead requests, which the sweeper should have ended."""
    client, before_ms = inside.stack.client("dynamodb"), time.time() * 1000 - _SWEPT_BY_MS
    scan = {
        "TableName": inside.stack.output("MeterTable"),
        "FilterExpression": "size(in_flight) > :none",
        "ExpressionAttributeValues": {":none": {"N": "0"}},
    }
    pages = call_aws(lambda: list(client.get_paginator("scan").paginate(**scan)))
    meters = [Meter(from_item(item)) for page in pages for item in page["Items"]]
    old = [(m, lease) for m in meters for lease in m.leases() if arrived_at_ms(lease.request_id) < before_ms]
    if not old:
        yield Finding("ok", "leases", "none is older than a request can live")
        return
    held = max(sum(lease.worst_pico_usd for m, lease in old if m.id == meter.id) for meter, _ in old)
    says = (
        f"{len(old)} are left of requests that died, holding back {to_usd(held):f} USD: the sweeper does not run; see the "
        "log of SweeperFunction and its schedule"
    )
    yield Finding("FAIL", "leases", says)


def _dead_letters(inside: _Inside) -> Iterator[Finding]:
    queues = {name: url for name, url in inside.of_type("AWS::SQS::Queue").items() if "DeadLetter" in name}
    full = []
    for name, url in queues.items():
        wanted = ["ApproximateNumberOfMessages"]
        answer = inside.call("sqs", "get_queue_attributes", QueueUrl=url, AttributeNames=wanted)
        if (waiting := int(answer["Attributes"]["ApproximateNumberOfMessages"])) > 0:
            full.append(f"{waiting} in {name}")
    if full:
        says = f"{', '.join(full)}; the worker's log says why they failed, 'naru batch redrive' sends them again"
        yield Finding("FAIL", "dead letters", says)
    elif queues:
        yield Finding("ok", "dead letters", f"none in {', '.join(queues)}")


def _alarms(inside: _Inside) -> Iterator[Finding]:
    names = list(inside.of_type("AWS::CloudWatch::Alarm").values())
    if not names:
        return
    alarms = [
        alarm
        for start in range(0, len(names), 100)
        for alarm in inside.call("cloudwatch", "describe_alarms", AlarmNames=names[start : start + 100])["MetricAlarms"]
    ]
    ringing = [alarm["AlarmName"] for alarm in alarms if alarm.get("StateValue") == "ALARM"]
    if ringing:
        yield Finding("FAIL", "alarms", f"{', '.join(ringing)}; docs/operations.md says what to do about each")
    else:
        yield Finding("ok", "alarms", f"none of {len(names)} rings")


def _last_report(inside: _Inside) -> Iterator[Finding]:
    """Whether yesterday's report was made, if yesterday had rows."""
    buckets = inside.of_type("AWS::S3::Bucket")
    bucket = next((physical for logical, physical in buckets.items() if "Report" in logical), None)
    if bucket is None:
        return
    zone = ZoneInfo(inside.stack.parameters.get("TimeZone") or "Asia/Seoul")
    now = datetime.now(UTC).astimezone(zone)
    # It is made at 00:10, and may take its time.
    day = (now - timedelta(days=1 if now.hour >= 1 else 2)).date()
    listed = call_aws(lambda: list(_objects(inside, bucket)))
    if any(day.isoformat() in key for key in listed):
        yield Finding("ok", "report", f"that of {day} is in {bucket}")
    elif _has_rows(inside, day):
        says = f"there is none of {day} in {bucket}, though that day had requests: see the log of the report's function"
        yield Finding("FAIL", "report", says)
    else:
        yield Finding("ok", "report", f"none of {day}, which had no requests")


def _objects(inside: _Inside, bucket: str) -> Iterator[str]:
    for page in inside.stack.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket):
        yield from (found["Key"] for found in page.get("Contents", ()))


def _has_rows(inside: _Inside, day: date) -> bool:
    for shard in range(SHARDS):
        answer = inside.call(
            "dynamodb",
            "query",
            TableName=inside.stack.output("LedgerTable"),
            KeyConditionExpression="day_shard = :day_shard",
            ExpressionAttributeValues={":day_shard": {"S": partition(day, shard)}},
            Limit=1,
        )
        if answer["Items"]:
            return True
    return False


def _concurrency(inside: _Inside) -> Iterator[Finding]:
    if inside.stack.endpoint_url is not None:
        return  # an emulator's figure says nothing
    limit = inside.call("lambda", "get_account_settings")["AccountLimit"]["ConcurrentExecutions"]
    if limit < _CONCURRENCY:
        says = f"this account may run {limit} functions at once, so {limit} requests; ask AWS for more (Service Quotas, Lambda)"
        yield Finding("warn", "concurrency", says)
    else:
        yield Finding("ok", "concurrency", f"{limit:,} requests may run at once in this account and region")
