"""Deploys template.yaml to the emulator, and puts in what an operator would: providers' keys, an API key."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import template
from local.emulator import CREDENTIALS, Emulator, EmulatorError
from naru.api_keys import NewKey, new_admin_key_item, new_key_items
from naru.attributes import to_item
from naru.meter_state import Limits

NAME = "naru"

_TEMPLATE_KEY = "template.json"
_DEPLOY_LIMIT_S = 60.0
_POLL_S = 0.05
_BATCHED = frozenset({"sqs:SendMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"})
_FIXED_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Function:
    """A deployed function: what a process that plays it must be told."""

    logical_id: str
    name: str
    arn: str
    handler: str
    folder: Path
    layer_folders: tuple[Path, ...]
    environment: Mapping[str, str]
    """The template's variables, resolved, and the credentials of the function's role."""
    memory_mb: int
    timeout_s: int
    log_group: str
    log_format: str


@dataclass(frozen=True)
class Stack:
    """A deployed stack."""

    emulator: Emulator
    outputs: Mapping[str, str]
    physical_ids: Mapping[str, str]
    """Logical id → physical id."""
    functions: Mapping[str, Function]
    """By logical id."""
    template: template.Template

    def add_api_key(self, name: str = "local", limits: Limits | None = None) -> str:
        """Create an API key and return its secret."""
        new = NewKey(name, limits or Limits(rpm=6_000, tpm=10_000_000, max_parallel=100))
        (item,), secret = new_key_items(new, now_ms=time.time_ns() // 10**6)
        self.emulator.client("dynamodb").put_item(TableName=self.outputs["MeterTable"], Item=to_item(item))
        return secret

    def add_admin_key(self, name: str = "local") -> str:
        """Create an admin key, as ``naru admin init`` does, and return its secret."""
        item, secret = new_admin_key_item(name, now_ms=time.time_ns() // 10**6)
        self.emulator.client("dynamodb").put_item(TableName=self.outputs["MeterTable"], Item=to_item(item))
        return secret

    def put_provider_keys(self, provider_keys: Mapping[str, str]) -> None:
        """Write the secret that holds the providers' keys; a function reads it once, so do it first."""
        self.emulator.client("secretsmanager").put_secret_value(
            SecretId=self.outputs["ProviderKeysSecret"], SecretString=json.dumps(dict(provider_keys))
        )


def put_file(emulator: Emulator, file: Path, name: str) -> str:
    """Upload a file to the local bucket and return its s3:// URI."""
    _bucket(emulator).put_object(Bucket=template.BUCKET, Key=name, Body=file.read_bytes())
    return f"s3://{template.BUCKET}/{name}"


def deploy(emulator: Emulator, parameters: Mapping[str, str], *, path: Path = template.TEMPLATE) -> Stack:
    """Package and deploy a template under the name `NAME`. Raises EmulatorError with the reason of a failure."""
    s3, loaded = _bucket(emulator), template.load(path)
    for logical_id, folder in loaded.code.items():
        packed = _zip(folder, is_layer=folder in loaded.layer_folders)
        s3.put_object(Bucket=template.BUCKET, Key=template.code_key(logical_id), Body=packed)
    # In the call itself a template may have 51,200 bytes; `sam deploy` uploads it, too.
    body = json.dumps(_as_the_emulator_takes_it(loaded.source)).encode()
    s3.put_object(Bucket=template.BUCKET, Key=_TEMPLATE_KEY, Body=body)
    cloudformation = emulator.client("cloudformation")
    cloudformation.create_stack(
        StackName=NAME,
        TemplateURL=f"{emulator.url}/{template.BUCKET}/{_TEMPLATE_KEY}",
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
    )
    described = _until_created(cloudformation)
    resources = cloudformation.describe_stack_resources(StackName=NAME)["StackResources"]
    physical_ids = {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in resources}
    return Stack(
        emulator=emulator,
        outputs={output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])},
        physical_ids=physical_ids,
        functions=_functions(emulator, loaded, physical_ids),
        template=loaded,
    )


def _as_the_emulator_takes_it(source: Mapping[str, Any]) -> dict[str, Any]:
    """Without alarms on metric math, which it refuses; no alarm ever goes off in it."""
    kept = {
        name: resource
        for name, resource in source["Resources"].items()
        if not (resource["Type"] == "AWS::CloudWatch::Alarm" and "Metrics" in resource["Properties"])
    }
    return {**source, "Resources": kept}


def _bucket(emulator: Emulator) -> Any:
    s3 = emulator.client("s3")
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=template.BUCKET, CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name})
    return s3


def _zip(folder: Path, *, is_layer: bool) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            if file.is_file() and not {"__pycache__", ".venv"} & set(inside.parts):
                name = f"python/{inside.as_posix()}" if is_layer else inside.as_posix()
                archive.writestr(zipfile.ZipInfo(name, _FIXED_ZIP_TIME), file.read_bytes())
    return packed.getvalue()


def _until_created(cloudformation: Any) -> dict[str, Any]:
    until = time.monotonic() + _DEPLOY_LIMIT_S
    while True:
        described: dict[str, Any] = cloudformation.describe_stacks(StackName=NAME)["Stacks"][0]
        if described["StackStatus"] == "CREATE_COMPLETE":
            return described
        if not described["StackStatus"].endswith("IN_PROGRESS") or time.monotonic() > until:
            events = cloudformation.describe_stack_events(StackName=NAME)["StackEvents"]
            reasons = {
                f"{event['LogicalResourceId']}: {event['ResourceStatusReason']}"
                for event in events
                if "FAILED" in event["ResourceStatus"] and event.get("ResourceStatusReason")
            }
            raise EmulatorError(f"the stack is {described['StackStatus']}\n" + "\n".join(sorted(reasons)))
        time.sleep(_POLL_S)


def _functions(emulator: Emulator, loaded: template.Template, physical_ids: Mapping[str, str]) -> dict[str, Function]:
    functions, client = {}, emulator.client("lambda")
    for logical_id, properties in loaded.of_type("AWS::Lambda::Function").items():
        deployed = client.get_function_configuration(FunctionName=physical_ids[logical_id])
        logging = properties.get("LoggingConfig", {})
        log_group = logging.get("LogGroup", {})
        name = deployed["FunctionName"]
        functions[logical_id] = Function(
            logical_id=logical_id,
            name=name,
            arn=deployed["FunctionArn"],
            handler=deployed["Handler"],
            folder=loaded.code[logical_id],
            layer_folders=loaded.layer_folders,
            environment=deployed.get("Environment", {}).get("Variables", {})
            | _role_credentials(emulator, deployed["Role"]),
            memory_mb=deployed["MemorySize"],
            timeout_s=deployed["Timeout"],
            log_group=physical_ids.get(log_group.get("Ref", ""), f"/aws/lambda/{name}"),
            log_format=logging.get("LogFormat", "Text"),
        )
    return functions


def _role_credentials(emulator: Emulator, role_arn: str) -> dict[str, str]:
    """What the emulator accepts as the function's role; the owner's keys where it does not look."""
    if not emulator.enforces_iam:
        return CREDENTIALS
    role_name, account = role_arn.rsplit("/", 1)[-1], role_arn.split(":")[4]
    trust = {
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Principal": {"Service": "lambda.amazonaws.com", "AWS": f"arn:aws:iam::{account}:root"},
    }
    iam = emulator.client("iam")
    _grant_batches(iam, role_name)
    iam.update_assume_role_policy(
        RoleName=role_name, PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    )
    assumed = emulator.client("sts").assume_role(RoleArn=role_arn, RoleSessionName="front-door")["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": assumed["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": assumed["SecretAccessKey"],
        "AWS_SESSION_TOKEN": assumed["SessionToken"],
    }


def _grant_batches(iam: Any, role_name: str) -> None:
    """Let who may send a message send ten: AWS has no permission of its own for that, and the emulator asks for one."""
    for name in iam.list_role_policies(RoleName=role_name)["PolicyNames"]:
        document = iam.get_role_policy(RoleName=role_name, PolicyName=name)["PolicyDocument"]
        document = json.loads(document) if isinstance(document, str) else document
        for statement in document["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            statement["Action"] = actions + [f"{action}Batch" for action in actions if action in _BATCHED]
        iam.put_role_policy(RoleName=role_name, PolicyName=name, PolicyDocument=json.dumps(document))
