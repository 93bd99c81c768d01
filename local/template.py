"""template.yaml as AWS sees it: after the SAM transform.

What the front door serves comes from here and is stated nowhere else: paths, integrations, API Gateway's own answers.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samtranslator.translator.managed_policy_translator import ManagedPolicyLoader
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

from local.emulator import REGION

REPOSITORY = Path(__file__).parent.parent
TEMPLATE = REPOSITORY / "template.yaml"
BUCKET = "naru-local"

_CODE_PROPERTY = {"AWS::Serverless::Function": "CodeUri", "AWS::Serverless::LayerVersion": "ContentUri"}
_STREAMING_URI = "/response-streaming-invocations"
_FUNCTION_IN_URI = re.compile(r"functions/\$\{(\w+)\.Arn\}/")
_DEFAULT_INTEGRATION_TIMEOUT_MS = 29_000


@dataclass(frozen=True)
class Route:
    """One path and method of the API, and the function behind it."""

    method: str
    resource: str
    """As in the template: ``/models/{model}``."""
    function: str
    """Logical id."""
    streams: bool
    timeout_ms: int


@dataclass(frozen=True)
class GatewayResponse:
    """An answer that API Gateway gives by itself; None is what API Gateway would say anyway."""

    status: int | None
    headers: dict[str, str]
    """Mapping expressions: ``'a literal'`` or ``context.requestId``."""
    template: str | None


@dataclass(frozen=True)
class Api:
    """The REST API of the template."""

    stage: str
    routes: tuple[Route, ...]
    gateway_responses: dict[str, GatewayResponse]
    binary_media_types: frozenset[str]


@dataclass(frozen=True)
class Template:
    """The template before and after the transform."""

    source: dict[str, Any]
    """As written, except that code is expected in `BUCKET`, as after ``sam package``."""
    resources: dict[str, Any]
    code: dict[str, Path]
    """Logical id of a function or layer, as written → its folder."""

    def of_type(self, resource_type: str) -> dict[str, dict[str, Any]]:
        """Properties of all transformed resources of a type, by logical id."""
        return {
            name: resource.get("Properties", {})
            for name, resource in self.resources.items()
            if resource["Type"] == resource_type
        }

    @property
    def layer_folders(self) -> tuple[Path, ...]:
        """Folders whose content a layer puts into ``python/``."""
        layers = (name for name, resource in self.source["Resources"].items() if "LayerVersion" in resource["Type"])
        return tuple(self.code[name] for name in layers)

    @property
    def api(self) -> Api:
        """The one REST API. Raises ValueError when there is not exactly one."""
        (properties,) = self.of_type("AWS::ApiGateway::RestApi").values()
        (stage,) = self.of_type("AWS::ApiGateway::Stage").values()
        body = properties["Body"]
        return Api(
            stage=stage["StageName"],
            routes=tuple(_routes(body["paths"])),
            gateway_responses={
                kind: _gateway_response(response)
                for kind, response in body.get("x-amazon-apigateway-gateway-responses", {}).items()
            },
            binary_media_types=frozenset(
                [*properties.get("BinaryMediaTypes", []), *body.get("x-amazon-apigateway-binary-media-types", [])]
            ),
        )


def load(path: Path = TEMPLATE) -> Template:
    """Read and transform a template."""
    source, code = yaml_parse(path.read_text(encoding="utf-8")), {}
    for name, resource in source["Resources"].items():
        if key := _CODE_PROPERTY.get(resource["Type"]):
            code[name] = path.parent / resource["Properties"][key]
            resource["Properties"][key] = f"s3://{BUCKET}/{code_key(name)}"
    logging.getLogger("samtranslator.metrics").setLevel(logging.ERROR)  # it regrets at exit that nobody reads them
    os.environ.setdefault("AWS_DEFAULT_REGION", REGION)  # the transform asks boto3 for one, for the partition
    parameters = {name: parameter.get("Default", "") for name, parameter in source.get("Parameters", {}).items()}
    transformed = transform(json.loads(json.dumps(source)), parameters, ManagedPolicyLoader(None))
    return Template(source, transformed["Resources"], code)


def code_key(logical_id: str) -> str:
    """Where in `BUCKET` the template expects the zipped code of a function or layer."""
    return f"{logical_id}.zip"


def _routes(paths: dict[str, Any]) -> Iterator[Route]:
    for resource, methods in paths.items():
        for method, operation in methods.items():
            integration = operation["x-amazon-apigateway-integration"]
            uri = integration["uri"]["Fn::Sub"]
            function = _FUNCTION_IN_URI.search(uri)
            if integration["type"] != "aws_proxy" or function is None:
                raise ValueError(f"{method} {resource}: only functions behind a proxy integration can be served here")
            yield Route(
                method="ANY" if method == "x-amazon-apigateway-any-method" else method.upper(),
                resource=resource,
                function=function[1],
                # Both are needed: with one of them alone API Gateway buffers.
                streams=integration.get("responseTransferMode") == "STREAM" and uri.endswith(_STREAMING_URI),
                timeout_ms=integration.get("timeoutInMillis", _DEFAULT_INTEGRATION_TIMEOUT_MS),
            )


def _gateway_response(response: dict[str, Any]) -> GatewayResponse:
    status, prefix = response.get("statusCode"), "gatewayresponse.header."
    return GatewayResponse(
        status=int(status) if status is not None else None,
        headers={
            name.removeprefix(prefix): value
            for name, value in response.get("responseParameters", {}).items()
            if name.startswith(prefix)
        },
        template=response.get("responseTemplates", {}).get("application/json"),
    )
