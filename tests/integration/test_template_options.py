"""What the options of the template become on AWS, each switched on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from samtranslator.translator.managed_policy_translator import ManagedPolicyLoader
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from local import fast_start, template

pytestmark = pytest.mark.slow


def transformed(source: dict[str, Any] | None = None, **parameters: str) -> dict[str, dict[str, Any]]:
    """The resources that CloudFormation would make with these parameters."""
    source = source or template.load().source
    given = {name: value.get("Default", "") for name, value in source["Parameters"].items()} | parameters
    result = transform(json.loads(json.dumps(source)), given, ManagedPolicyLoader({}))
    resources: dict[str, dict[str, Any]] = result["Resources"]
    return resources


def of_type(resources: dict[str, dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {name: found["Properties"] for name, found in resources.items() if found["Type"] == kind}


def test_a_runtime_changes_with_a_deployment_and_not_by_itself() -> None:
    """Streaming replaces two methods of Lambda's own client: a release that renamed them would be an outage."""
    for name, function in of_type(transformed(), "AWS::Lambda::Function").items():
        assert function["RuntimeManagementConfig"] == {"UpdateRuntimeOn": {"Ref": "RuntimeUpdates"}}, name
    assert template.load().source["Parameters"]["RuntimeUpdates"]["Default"] == "FunctionUpdate"


def test_tracing_covers_the_api_and_every_function_and_is_off_at_first() -> None:
    off, on = transformed(), transformed(Tracing="Active")
    for name, function in of_type(off, "AWS::Lambda::Function").items():
        assert "TracingConfig" not in function, name
    for name, function in of_type(on, "AWS::Lambda::Function").items():
        assert function["TracingConfig"] == {"Mode": {"Ref": "Tracing"}}, name
    (stage,) = of_type(on, "AWS::ApiGateway::Stage").values()
    assert stage["TracingEnabled"] == {"Fn::If": ["HasTracing", True, False]}
    roles = of_type(on, "AWS::IAM::Role")
    writers = [role for role in roles.values() if "xray" in json.dumps(role.get("ManagedPolicyArns", [])).lower()]
    assert len(writers) == len(of_type(on, "AWS::Lambda::Function"))
    assert "xray" not in json.dumps(of_type(off, "AWS::IAM::Role")).lower()


def test_a_web_acl_stands_before_the_stage_where_one_is_named() -> None:
    association = transformed()["WebAcl"]
    assert association["Condition"] == "HasWebAcl"
    assert association["Properties"]["WebACLArn"] == {"Ref": "WebAclArn"}
    # The stage's own id, so that CloudFormation makes it first.
    assert "${Apiv1Stage}" in association["Properties"]["ResourceArn"]["Fn::Sub"]
    assert "Apiv1Stage" in transformed()


def test_batches_can_be_kept_from_taking_all_of_the_accounts_concurrency() -> None:
    functions = of_type(transformed(), "AWS::Lambda::Function")
    reserve = {"Fn::If": ["HasBatchReserve", {"Ref": "BatchReservedConcurrency"}, {"Ref": "AWS::NoValue"}]}
    assert functions["BatchWorkerFunction"]["ReservedConcurrentExecutions"] == reserve
    assert not [
        name for name, each in functions.items() if "ReservedConcurrentExecutions" in each and "Batch" not in name
    ]


@pytest.mark.parametrize(("way", "version", "alias"), [("snapstart", "PublishedVersions", None), ("5", None, 5)])
def test_a_fast_start_puts_the_chat_function_behind_an_alias_that_streams(
    tmp_path: Path, way: str, version: str | None, alias: int | None
) -> None:
    file = tmp_path / "template.yaml"
    file.write_text(json.dumps(template.load().source), encoding="utf-8")
    fast_start.main([way, str(file)])
    resources = transformed(yaml_parse(file.read_text(encoding="utf-8")))
    function = resources["ChatFunction"]["Properties"]
    assert function.get("SnapStart", {}).get("ApplyOn") == version
    live = resources["ChatFunctionAliaslive"]["Properties"]
    assert live.get("ProvisionedConcurrencyConfig", {}).get("ProvisionedConcurrentExecutions") == alias
    (api,) = of_type(resources, "AWS::ApiGateway::RestApi").values()
    chat = api["Body"]["paths"]["/chat/completions"]["post"]["x-amazon-apigateway-integration"]
    assert chat["responseTransferMode"] == "STREAM"
    assert chat["uri"]["Fn::Sub"].endswith("functions/${ChatFunctionAliaslive}/response-streaming-invocations")


def test_every_deployment_with_a_fast_start_publishes_a_version() -> None:
    """Or the alias would go on with the parameters of the one before."""
    source = template.load().source

    def version(release: str) -> str:
        changed = fast_start.apply(source, snap_start=True, provisioned=0, release=release)
        (name,) = of_type(transformed(changed), "AWS::Lambda::Version")
        return name

    assert version("1") != version("2")
    assert version("1") == version("1")


@pytest.mark.parametrize("way", ["0", "-1", "often", ""])
def test_a_fast_start_that_makes_no_sense_is_refused(
    tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "template.yaml"
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit) as refused:
        fast_start.main(["--", way, str(file)])
    assert refused.value.code == 2
    assert "neither" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "{}"


def test_every_alarm_is_explained() -> None:
    """Who is woken by an alarm finds what it means and what to do about it."""
    text = (template.REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    alarms = of_type(transformed(), "AWS::CloudWatch::Alarm")
    assert alarms
    for name in alarms:
        assert f"| `{name}` |" in text, name


def test_every_parameter_is_explained() -> None:
    """Who deploys finds each question of ``sam deploy --guided`` in the documents."""
    text = "".join(page.read_text(encoding="utf-8") for page in (template.REPOSITORY / "docs").glob("*.md"))
    parameters = template.load().source["Parameters"]
    assert parameters
    for name in parameters:
        assert f"`{name}`" in text, name
