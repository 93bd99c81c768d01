"""Chat completions, models, health, and this description."""

from __future__ import annotations

import json
import re
from typing import Any

from naru.openapi.operations import JSON, Operation, header_parameter, listing, obj, ref
from naru.wire import ChatRequest

_EVENTS = "text/event-stream"
_HEADERS = (
    header_parameter(
        "Idempotency-Key",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
        "The same key with the same body is answered with the same answer for 24 hours, and paid for once.",
    ),
    header_parameter("x-naru-fallback", {"const": "none"}, "No other model may answer in place of the one asked for."),
    header_parameter(
        "x-naru-strategy",
        {"enum": ["priority", "weighted", "lowest-cost", "lowest-latency"]},
        "How deployments are chosen; for keys that may route.",
    ),
    header_parameter("x-naru-deployment", {"type": "string"}, "One deployment and no other; for keys that may route."),
)

OPERATIONS = (
    Operation(
        method="POST",
        path="/chat/completions",
        id="createChatCompletion",
        tag="chat",
        summary="Answers a conversation, at once or as a stream of events that ends in [DONE].",
        parameters=_HEADERS,
        body="ChatRequest",
        answers={200: {JSON: "ChatCompletion", _EVENTS: {"type": "string"}}},
        errors=(404, 409, 422, 502, 504),
    ),
    Operation(
        method="GET",
        path="/models",
        id="listModels",
        tag="models",
        summary="The models of the catalog.",
        answers={200: {JSON: listing("Model")}},
    ),
    Operation(
        method="GET",
        path="/models/{model}",
        id="retrieveModel",
        tag="models",
        summary="One model.",
        answers={200: {JSON: "Model"}},
        errors=(404,),
    ),
    Operation(
        method="GET",
        path="/health",
        id="health",
        tag="gateway",
        summary="Is it there?",
        key="none",
        answers={200: {JSON: obj({"status": {"const": "ok"}})}},
    ),
    Operation(
        method="GET",
        path="/openapi.json",
        id="describe",
        tag="gateway",
        summary="This description.",
        key="none",
        answers={200: {JSON: {"type": "object"}}},
    ),
)


def schemas() -> dict[str, Any]:
    """What these operations take and answer. The request's is the one that requests are checked by."""
    request = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = request.pop("$defs")
    read: dict[str, Any] = json.loads(
        re.sub(r"#/components/schemas/_", "#/components/schemas/Chat", json.dumps({"ChatRequest": request, **parts}))
    )
    usage = {name: {"type": "integer", "minimum": 0} for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    choice = obj(
        {
            "index": {"type": "integer"},
            "message": obj({"role": {"type": "string"}}),
            "finish_reason": {"type": ["string", "null"]},
        }
    )
    return {
        **{name.replace("_", "Chat", 1): _readable(schema) for name, schema in read.items()},
        "ChatCompletion": obj({"choices": {"type": "array", "minItems": 1, "items": choice}, "usage": ref("Usage")}),
        "Usage": obj(usage),
        "Model": obj(
            {
                "id": {"type": "string"},
                "object": {"const": "model"},
                "created": {"type": "integer"},
                "owned_by": {"type": "string"},
                "context_tokens": {"type": "integer", "description": "The longest prompt together with its answer."},
                "max_output_tokens": {"type": "integer", "description": "The highest max_completion_tokens."},
                "default_output_tokens": {
                    "type": "integer",
                    "description": "Where an answer ends if the request states no max_completion_tokens or max_tokens.",
                },
            }
        ),
    }


def _readable(schema: Any) -> Any:
    """Without pydantic's titles, and without defaults of null; its alternatives may overlap, so any of them will do."""
    if isinstance(schema, list):
        return [_readable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        {"oneOf": "anyOf"}.get(name, name): (
            {key: _readable(of) for key, of in value.items()} if name == "properties" else _readable(value)
        )
        for name, value in schema.items()
        if not (name == "title" and isinstance(value, str)) and not (name == "default" and value is None)
    }
