"""What template.yaml becomes on AWS: after the SAM transform, where silent mistakes show."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from local import template
from local.template import Api, Template
from naru.objects import object_name

CHAT_ROUTES = {
    ("POST", "/chat/completions"),
    ("OPTIONS", "/chat/completions"),
    ("GET", "/models"),
    ("OPTIONS", "/models"),
    ("GET", "/models/{model}"),
    ("OPTIONS", "/models/{model}"),
    ("GET", "/health"),
    ("GET", "/openapi.json"),
    ("OPTIONS", "/openapi.json"),
}


@pytest.fixture(scope="module")
def loaded() -> Template:
    return template.load()


@pytest.fixture(scope="module")
def api(loaded: Template) -> Api:
    return loaded.api


def functions(loaded: Template) -> dict[str, dict[str, Any]]:
    return loaded.of_type("AWS::Lambda::Function")


def statements(loaded: Template) -> list[dict[str, Any]]:
    """All statements of all roles that this template states itself."""
    roles = loaded.of_type("AWS::IAM::Role").values()
    policies = [policy["PolicyDocument"] for role in roles for policy in role.get("Policies", [])]
    found = [statement for policy in policies for statement in policy["Statement"]]
    return [statement["Fn::If"][1] if "Fn::If" in statement else statement for statement in found]


def test_all_routes_of_chat_are_there(api: Api) -> None:
    """No ANY: an unknown method is not for this function to refuse."""
    assert {(route.method, route.resource) for route in api.routes if route.function == "ChatFunction"} == CHAT_ROUTES
    assert api.stage == "v1"


def test_every_integration_of_chat_streams(loaded: Template) -> None:
    """`ResponseTransferMode: STREAM` in SAM silently makes a buffered one, and lint passes."""
    (properties,) = loaded.of_type("AWS::ApiGateway::RestApi").values()
    checked = 0
    for methods in properties["Body"]["paths"].values():
        for operation in methods.values():
            integration = operation["x-amazon-apigateway-integration"]
            uri = integration["uri"]["Fn::Sub"]
            if "${ChatFunction.Arn}" in uri:
                assert integration["responseTransferMode"] == "STREAM"
                assert uri.endswith("/2021-11-15/functions/${ChatFunction.Arn}/response-streaming-invocations")
                checked += 1
    assert checked == len(CHAT_ROUTES)


def test_no_integration_waits_longer_than_its_function_runs(loaded: Template, api: Api) -> None:
    """Nested timeouts: upstream < function ≤ API Gateway's own limit of 15 minutes."""
    for route in api.routes:
        assert route.timeout_ms <= functions(loaded)[route.function]["Timeout"] * 1000 <= 900_000


def test_the_endpoint_is_regional(loaded: Template) -> None:
    """An edge-optimised one cuts a stream after 30 s of silence."""
    (properties,) = loaded.of_type("AWS::ApiGateway::RestApi").values()
    assert properties["EndpointConfiguration"] == {"Types": ["REGIONAL"]}


def test_every_gateway_response_is_openais_error_object_with_a_request_id(api: Api) -> None:
    """SDKs show the message; a browser may read the answer."""
    assert {"DEFAULT_4XX", "DEFAULT_5XX", "MISSING_AUTHENTICATION_TOKEN", "REQUEST_TOO_LARGE"} <= set(
        api.gateway_responses
    )
    for kind, response in api.gateway_responses.items():
        filled = re.sub(r"\$context\.error\.messageString", '"text"', response.template or "")
        error = json.loads(filled)["error"]
        assert set(error) == {"message", "type", "param", "code"}, kind
        assert "$" not in filled, kind
        assert response.headers["x-request-id"] == "context.requestId", kind
        assert response.headers["Access-Control-Allow-Origin"] == "'*'", kind


def test_a_throttled_client_is_told_when_to_come_back(api: Api) -> None:
    """A 429 without Retry-After makes a storm."""
    assert api.gateway_responses["THROTTLED"].headers["Retry-After"] == "'1'"


def test_every_function_logs_json_into_a_group_with_a_retention(loaded: Template) -> None:
    """A group that Lambda makes by itself is kept, and paid for, for ever."""
    groups = loaded.of_type("AWS::Logs::LogGroup")
    for name, function in functions(loaded).items():
        logging = function["LoggingConfig"]
        assert logging["LogFormat"] == "JSON", name
        assert groups[logging["LogGroup"]["Ref"]]["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name


def test_every_function_has_the_layer_and_a_handler(loaded: Template) -> None:
    """The layer's logical id gets a hash in the transform."""
    (layer,) = loaded.of_type("AWS::Lambda::LayerVersion")
    for name, function in functions(loaded).items():
        assert function["Layers"] == [{"Ref": layer}], name
        assert function["Runtime"] == "python3.13", name
        assert function["Architectures"] == [{"Ref": "Architecture"}], name
        module, _, _ = function["Handler"].partition(".")
        assert (loaded.code[name] / f"{module}.py").is_file(), name


def test_tables_outlive_the_stack_and_can_be_restored(loaded: Template) -> None:
    """An invoice may be asked for years later."""
    tables = loaded.of_type("AWS::DynamoDB::Table")
    for name in set(tables) - {"IdempotencyTable", "HealthTable", "BatchTable", "ReportTable"}:
        table = tables[name]
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}, name
        assert loaded.resources[name]["DeletionPolicy"] == "Retain", name
        assert loaded.resources[name]["UpdateReplacePolicy"] == "Retain", name
        assert table["BillingMode"] == "PAY_PER_REQUEST", name


def test_answers_are_forgotten_after_a_day(loaded: Template) -> None:
    """Kept for retries only: no backup holds what users were told."""
    table = loaded.of_type("AWS::DynamoDB::Table")["IdempotencyTable"]
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_s", "Enabled": True}
    assert "PointInTimeRecoverySpecification" not in table
    bucket = loaded.of_type("AWS::S3::Bucket")["AnswersBucket"]
    (rule,) = bucket["LifecycleConfiguration"]["Rules"]
    assert (rule["Status"], rule["ExpirationInDays"]) == ("Enabled", 1)
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert "VersioningConfiguration" not in bucket


def test_the_health_of_providers_is_forgotten(loaded: Template) -> None:
    """It is learnt again within seconds, so nothing of it is backed up or outlives the stack."""
    table = loaded.of_type("AWS::DynamoDB::Table")["HealthTable"]
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_s", "Enabled": True}
    assert "PointInTimeRecoverySpecification" not in table
    assert loaded.resources["HealthTable"]["DeletionPolicy"] == "Delete"
    (statement,) = [each for each in statements(loaded) if each.get("Sid") == "ShareTheHealthOfProviders"]
    assert statement["Action"] == ["dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:UpdateItem"]


def test_what_batches_hold_is_forgotten(loaded: Template) -> None:
    """Prompts and answers: no backup, and a lifecycle rule for every prefix that objects get."""
    table = loaded.of_type("AWS::DynamoDB::Table")["BatchTable"]
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_s", "Enabled": True}
    assert "PointInTimeRecoverySpecification" not in table
    bucket = loaded.of_type("AWS::S3::Bucket")["FilesBucket"]
    rules = {rule["Prefix"]: rule["ExpirationInDays"] for rule in bucket["LifecycleConfiguration"]["Rules"]}
    prefixes = {
        object_name("k", "f", life_s=life_s).partition("/")[0] + "/" for life_s in range(3600, 31 * 86_400, 3600)
    }
    assert {prefix: int(prefix.partition("-")[0]) for prefix in prefixes} == rules
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}


def test_the_queue_of_batches_gives_its_workers_time_and_keeps_what_kills_them(loaded: Template) -> None:
    """AWS: visibility of six times the timeout; partial failures reported; dead letters kept for two weeks, and seen."""
    queues = loaded.of_type("AWS::SQS::Queue")
    queue, timeout_s = queues["BatchQueue"], functions(loaded)["BatchWorkerFunction"]["Timeout"]
    assert queue["VisibilityTimeout"] == 6 * timeout_s
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": ["BatchDeadLetterQueue", "Arn"]}
    assert queues["BatchDeadLetterQueue"]["MessageRetentionPeriod"] == 14 * 86_400
    (mapping,) = loaded.of_type("AWS::Lambda::EventSourceMapping").values()
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["ScalingConfig"] == {"MaximumConcurrency": {"Ref": "BatchWorkers"}}
    alarm = loaded.of_type("AWS::CloudWatch::Alarm")["BatchDeadLetters"]
    assert (alarm["MetricName"], alarm["Threshold"]) == ("ApproximateNumberOfMessagesVisible", 0)


def test_forms_come_as_bytes_and_everything_else_as_text(api: Api) -> None:
    """A media type too many here, and JSON would arrive in base64."""
    assert "multipart/form-data" in api.binary_media_types
    assert all("multipart" in media_type for media_type in api.binary_media_types)


def test_the_ledger_is_only_added_to_and_queried(loaded: Template) -> None:
    """No function can change or remove a row, whatever its code says."""
    for statement in statements(loaded):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if "LedgerTable" in json.dumps(statement["Resource"]):
            assert set(actions) <= {"dynamodb:PutItem", "dynamodb:Query"}


def test_no_permission_is_for_everything(loaded: Template) -> None:
    """Each statement names its actions, its resources and its reason."""
    for statement in statements(loaded):
        assert statement["Resource"] != "*", statement
        assert "*" not in json.dumps(statement["Action"]), statement
        # SAM writes one statement itself: a schedule may invoke the function it is for.
        assert "Sid" in statement or "lambda:InvokeFunction" in statement["Action"], statement
