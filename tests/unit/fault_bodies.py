"""Errors as providers and the gateways in front of them send them, and what each means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from naru.fault_rules import FaultKind

PROMPT = "청구서에 관해 물어볼게요: my credit card balance, an API key and a model."


@dataclass(frozen=True)
class Body:
    """An error answer. ``sent`` is what the client had written, where that matters."""

    id: str
    status: int
    payload: Any
    kind: FaultKind
    dialect: Literal["openai", "clovastudio"] = "openai"
    headers: dict[str, str] = field(default_factory=dict)
    sent: str = PROMPT


def _openai(message: str, type_: str | None = None, code: Any = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def _anthropic(type_: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": type_, "message": message}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}


def _google(code: int, status: str, message: str, *reasons: str, details: tuple[Any, ...] = ()) -> list[Any]:
    info = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason} for reason in reasons]
    error = {"code": code, "message": message, "status": status, "details": [*info, *details]}
    return [{"error": error}]


def _quota(quota_id: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota_id}]}


def _new_api(message: str, code: str = "", type_: str = "new_api_error") -> dict[str, Any]:
    return _openai(f"{message} (request id: 20250903003241616637594M0nCmn54)", type_, code, "")


def _naver(code: str, message: str) -> dict[str, Any]:
    return {"status": {"code": code, "message": message}}


_TOO_LOW = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade."
_VERIFY = "Your organization must be verified to stream this model. Please go to: https://platform.openai.com/settings"
_GOOGLE_QUOTA = "You exceeded your current quota, please check your plan and billing details."
_INNER = '{"type":"error","error":{"type":"invalid_request_error","message":"' + _TOO_LOW + '"}}'

BODIES: tuple[Body, ...] = (
    # ── Anthropic ───────────────────────────────────────────────────────────────────────────────────────
    Body("anthropic-credit-400", 400, _anthropic("invalid_request_error", _TOO_LOW), "credit"),
    Body("anthropic-billing-402", 402, _anthropic("billing_error", "Billing problem."), "credit"),
    Body("anthropic-usage-limits", 400, _anthropic("invalid_request_error", "You have reached your specified API usage limits. You will regain access on 2026-12-01."), "credit"),
    Body("anthropic-disabled-400", 400, _anthropic("invalid_request_error", "This organization has been disabled."), "suspended"),
    Body("anthropic-disabled-403", 403, _anthropic("permission_error", "This organization has been disabled."), "suspended"),
    Body("anthropic-permission", 403, _anthropic("permission_error", "Your API key does not have permission to use the specified resource."), "permission"),
    Body("anthropic-key", 401, _anthropic("authentication_error", "invalid x-api-key"), "key"),
    Body("anthropic-model", 404, _anthropic("not_found_error", "model: claude-sonnet-4-5"), "model"),
    Body("anthropic-overloaded", 529, _anthropic("overloaded_error", "Overloaded"), "overloaded"),
    Body("anthropic-overloaded-200", 200, _anthropic("overloaded_error", "Overloaded"), "overloaded"),
    Body("anthropic-rate", 429, _anthropic("rate_limit_error", "This request would exceed your account's rate limit."), "rate_limited"),
    Body("anthropic-500", 500, _anthropic("api_error", "Internal server error"), "server"),
    Body("anthropic-long", 400, _anthropic("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), "context_length"),
    Body("anthropic-parameter", 400, _anthropic("invalid_request_error", "temperature: range: 0..1"), "parameter"),
    # ── OpenAI, Azure ───────────────────────────────────────────────────────────────────────────────────
    Body("openai-quota", 429, _openai(_GOOGLE_QUOTA, "insufficient_quota", "insufficient_quota"), "credit"),
    Body("openai-hard-limit", 400, _openai("Billing hard limit has been reached", "invalid_request_error", "billing_hard_limit_reached"), "credit"),
    Body("openai-not-active", 429, _openai("Your account is not active, please check your billing details on our website.", "billing_not_active", "billing_not_active"), "credit"),
    Body("openai-deactivated", 401, _openai("The OpenAI account associated with this API key has been deactivated.", "invalid_request_error", "account_deactivated"), "suspended"),
    Body("openai-key", 401, _openai("Incorrect API key provided: sk-x.", "invalid_request_error", "invalid_api_key"), "key"),
    Body("openai-region", 403, _openai("Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"), "region"),
    Body("openai-verify-400", 400, _openai(_VERIFY, "invalid_request_error", "unsupported_value", "stream"), "terms"),
    Body("openai-verify-403", 403, _openai(_VERIFY, "invalid_request_error"), "terms"),
    Body("openai-model-404", 404, _openai("The model `gpt-9` does not exist or you do not have access to it.", "invalid_request_error", "model_not_found", "model"), "model"),
    Body("openai-model-403", 403, _openai("Project `proj_x` does not have access to model `gpt-9`", "invalid_request_error", "model_not_found"), "model"),
    Body("openai-ip", 401, _openai("Your IP address 203.0.113.7 is not authorized.", "invalid_request_error", "ip_not_authorized"), "permission"),
    Body("openai-scopes", 403, _openai("You have insufficient permissions for this operation. Missing scopes: model.request", "invalid_request_error"), "permission"),
    Body("openai-rpm", 429, _openai("Rate limit reached for gpt-4.1 in organization org-x on requests per min.", "requests", "rate_limit_exceeded"), "rate_limited"),
    Body("openai-tpm-one-request", 429, _openai("Request too large for gpt-4.1 in organization org-x on tokens per min (TPM): Limit 30000, Requested 45000.", "tokens", "rate_limit_exceeded"), "too_large"),
    Body("openai-slow-down", 503, _openai("Slow down", "server_error", "slow_down"), "overloaded"),
    Body("openai-parameter", 400, _openai("Unsupported parameter: 'top_k'.", "invalid_request_error", "unsupported_parameter", "top_k"), "parameter"),
    Body("openai-context", 400, _openai("This model's maximum context length is 128000 tokens.", "invalid_request_error", "context_length_exceeded", "messages"), "context_length"),
    Body("azure-deployment", 404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}}, "model"),
    Body("azure-filter", 400, {"error": {"message": "The response was filtered.", "code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, "content_filter"),
    Body("bedrock-access", 403, {"message": "You don't have access to the model with the specified model ID."}, "access"),
    # ── Google ──────────────────────────────────────────────────────────────────────────────────────────
    Body("google-key-400", 400, _google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", "API_KEY_INVALID"), "key"),
    Body("google-key-words", 400, _google(400, "INVALID_ARGUMENT", "API key expired. Please renew the API key."), "key"),
    Body("google-service-disabled", 403, _google(403, "PERMISSION_DENIED", "Generative Language API has not been used in project 1 before or it is disabled.", "SERVICE_DISABLED"), "permission"),
    Body("google-billing", 403, _google(403, "PERMISSION_DENIED", "This API method requires billing to be enabled.", "BILLING_DISABLED"), "credit"),
    Body("google-suspended", 403, _google(403, "PERMISSION_DENIED", "Permission denied: Consumer 'api_key:x' has been suspended.", "CONSUMER_SUSPENDED"), "suspended"),
    Body("google-location", 400, _google(400, "FAILED_PRECONDITION", "User location is not supported for the API use."), "region"),
    Body("google-precondition", 400, _google(400, "FAILED_PRECONDITION", "Precondition check failed."), "address"),
    Body("google-limit-0", 429, _google(429, "RESOURCE_EXHAUSTED", _GOOGLE_QUOTA + "x" * 900 + " Quota exceeded for metric: generate_content_free_tier_requests, limit: 0"), "credit"),
    Body("google-per-day", 429, _google(429, "RESOURCE_EXHAUSTED", _GOOGLE_QUOTA, details=(_quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier"),)), "credit"),
    Body("google-per-minute", 429, _google(429, "RESOURCE_EXHAUSTED", _GOOGLE_QUOTA, details=(_quota("GenerateRequestsPerMinutePerProjectPerModel"), {"retryDelay": "36s"})), "rate_limited"),
    Body("google-prepaid", 429, _google(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted. Please go to AI Studio."), "credit"),
    Body("google-model", 404, _google(404, "NOT_FOUND", "models/gemini-9 is not found for API version v1beta"), "model"),
    Body("google-unavailable", 503, _google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), "overloaded"),
    Body("google-cancelled", 499, _google(499, "CANCELLED", "The operation was cancelled."), "timeout"),
    # ── Gateways: OpenRouter, LiteLLM, new-api and their like ───────────────────────────────────────────
    Body("openrouter-credits", 402, {"error": {"message": "Insufficient credits. Add more using https://openrouter.ai/settings/credits", "code": 402}}, "credit"),
    Body("openrouter-credits-400", 400, {"error": {"message": "This request requires more credits, or fewer max_tokens.", "code": 402}}, "credit"),
    Body("openrouter-raw", 400, {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": _INNER, "provider_name": "Anthropic"}}}, "credit"),
    Body("openrouter-moderation", 403, {"error": {"code": 403, "message": 'openai/gpt-4.1 requires moderation on Azure. Your input was flagged for "violence".', "metadata": {"reasons": ["violence"]}}}, "content_filter"),
    Body("openrouter-policy", 404, {"error": {"message": "No endpoints found matching your data policy (Free model training).", "code": 404}}, "terms"),
    Body("openrouter-tools", 404, {"error": {"message": "No endpoints found that support tool use.", "code": 404}}, "feature"),
    Body("openrouter-model", 400, {"error": {"message": "naver/hcx-9 is not a valid model ID", "code": 400}}, "model"),
    Body("openrouter-200", 200, {"error": {"message": "Upstream died", "code": 502}}, "server"),
    Body("litellm-credit", 400, _openai("litellm.BadRequestError: AnthropicException - " + _INNER + ". Received Model Group=claude", None, "400"), "credit"),
    Body("litellm-quota", 429, _openai("litellm.RateLimitError: RateLimitError: OpenAIException - " + _GOOGLE_QUOTA, None, "429"), "credit"),
    Body("litellm-budget", 400, _openai("Budget has been exceeded! Current cost: 1.2, Max budget: 1.0", "budget_exceeded", "400"), "credit"),
    Body("litellm-key", 401, _openai("Authentication Error, Invalid proxy server token passed.", "auth_error", "401"), "key"),
    Body("new-api-quota", 403, _new_api("用户额度不足, 剩余额度: \uff04-0.000002", "insufficient_user_quota"), "credit"),
    Body("new-api-quota-words", 500, _new_api("预扣费额度失败, 用户剩余额度: ¥0.23, 需要预扣费额度: ¥0.29"), "credit"),
    Body("new-api-token", 403, _new_api("token quota is not enough, token remain quota: \uff040.25, need quota: \uff045.5", "pre_consume_token_quota_failed"), "credit"),
    Body("new-api-token-used", 401, _new_api("该令牌额度已用尽"), "credit"),
    Body("new-api-banned", 403, _new_api("用户已被封禁"), "suspended"),
    Body("new-api-token-invalid", 401, _new_api("无效的令牌"), "key"),
    Body("new-api-channel", 503, _new_api("当前分组 default 下对于模型 hcx 无可用渠道"), "model"),
    Body("new-api-saturated", 500, _new_api("当前分组上游负载已饱和\uff0c请稍后再试"), "overloaded"),
    Body("one-api-english", 403, _new_api("user quota is not enough", "insufficient_user_quota", "one_api_error"), "credit"),
    Body("zhipu", 429, {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}}, "credit"),
    Body("dashscope", 400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing.", "request_id": "x"}, "credit"),
    Body("minimax-200", 200, {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "credit"),
    Body("code-msg-200", 200, {"code": 402, "msg": "余额不足"}, "credit"),
    Body("code-msg-400", 400, {"code": 40000, "msg": "账户余额不足\uff0c请充值"}, "credit"),
    Body("string", 400, {"error": "insufficient_quota"}, "credit"),
    Body("string-words", 400, {"error": "Insufficient balance"}, "credit"),
    Body("message-only", 403, {"message": "Your account has been suspended."}, "suspended"),
    Body("detail", 400, {"detail": "API key is invalid"}, "key"),
    Body("detail-object", 400, {"detail": {"error": "payment_required", "message": "No credits left"}}, "credit"),
    Body("list", 400, [{"error": {"message": "Out of credits", "code": "out_of_credits"}}], "credit"),
    Body("errors", 400, {"errors": [{"message": "Your subscription has expired", "code": 0}]}, "credit"),
    Body("plain-text", 400, "Insufficient credits", "credit"),
    Body("nested", 400, {"error": {"error": {"code": "model_not_found", "message": "There is none"}}}, "model"),
    Body("korean-credit", 400, {"error": {"message": "무료 크레딧이 모두 소진되었습니다. 충전 후 이용해 주세요."}}, "credit"),
    Body("korean-balance", 403, {"message": "잔액이 부족합니다."}, "credit"),
    Body("korean-key", 400, {"message": "유효하지 않은 API 키입니다."}, "key"),
    Body("korean-region", 400, {"message": "해당 국가에서는 이용할 수 없습니다."}, "region"),
    Body("retired", 410, _openai("The model `claude-sonnet-4-5` has been retired."), "model"),
    Body("retired-400", 400, _openai("The model `claude-sonnet-4-5` has been deprecated and is no longer supported.", "invalid_request_error"), "model"),
    Body("409-credit", 409, _openai("Insufficient credits", "conflict"), "credit"),
    Body("421-region", 421, {"message": "This service is not available in your region."}, "region"),
    Body("451", 451, {"message": "Unavailable For Legal Reasons"}, "region"),
    Body("422-terms", 422, {"message": "You must accept the terms of use first."}, "terms"),
    Body("groq-terms", 400, _openai("The model `x` requires terms acceptance.", "invalid_request_error", "model_terms_required"), "terms"),
    Body("upstage-suspended", 403, {"error": {"message": "This api key has been revoked", "type": "invalid_request_error", "code": "api_key_is_not_allowed"}}, "suspended"),
    Body("498", 498, {"error": {"message": "Flex tier capacity exceeded"}}, "overloaded"),
    Body("deepseek-model", 400, _openai("Model Not Exist", "invalid_request_error", "invalid_request_error"), "model"),
    Body("upstage-model", 400, _openai("The requested model is invalid or no longer supported.", "invalid_request_error"), "model"),
    Body("mistral-model", 400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "param": None, "code": "1500"}, "model"),
    Body("bedrock-model", 400, {"__type": "ValidationException", "message": "The provided model identifier is invalid."}, "model"),
    Body("bedrock-region", 400, {"message": "Access to Anthropic models is not allowed from unsupported countries, regions, or territories."}, "region"),
    Body("bedrock-throttling", 400, {"__type": "ThrottlingException", "message": "Too many tokens, please wait."}, "rate_limited"),
    Body("openai-sample", 403, _openai("You are not allowed to sample from this model", "invalid_request_error"), "access"),
    Body("plan", 400, _openai("This model is not available on your current plan", "invalid_request_error"), "access"),
    Body("xai-credit", 400, {"code": "Some error", "error": "Your newly created team doesn't have any credits yet."}, "credit"),
    Body("xai-key", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xx."}, "key"),
    Body("fireworks", 412, {"error": {"message": "Account is suspended, possibly due to reaching the spending limit"}}, "suspended"),
    Body("moonshot", 429, _openai("Your account org-x is suspended, please check your plan and billing details", "exceeded_current_quota_error"), "credit"),
    Body("baidu-200", 200, {"error_code": 17, "error_msg": "Open api daily request limit reached"}, "credit"),
    Body("success-false", 200, {"success": False, "message": "余额不足\uff0c请先充值"}, "credit"),
    Body("you-have", 400, {"message": "You have insufficient balance."}, "credit"),
    Body("you-reached", 400, {"message": "You've reached your monthly spending limit."}, "credit"),
    Body("per-day", 429, {"error": {"message": "Rate limit exceeded: free-models-per-day. Add 10 credits", "code": 429}}, "credit"),
    Body("trial", 403, {"message": "Your free trial has expired."}, "credit"),
    Body("korean-quota", 400, {"message": "이용 한도를 초과하였습니다."}, "credit"),
    Body("korean-charge", 400, {"message": "충전이 필요합니다."}, "credit"),
    Body("country", 400, {"message": "Claude is not available in your country."}, "region"),
    # ── CLOVA Studio ────────────────────────────────────────────────────────────────────────────────────
    Body("naver-parameter", 400, _naver("40001", "Invalid parameter"), "parameter", "clovastudio"),
    Body("naver-context", 400, _naver("40003", "Text too long"), "context_length", "clovastudio"),
    Body("naver-images", 400, _naver("40003", "more than 5 images"), "parameter", "clovastudio"),
    Body("naver-filter", 400, _naver("40005", "Unavailable output 1"), "content_filter", "clovastudio"),
    Body("naver-function", 400, _naver("40009", "Unsupported function"), "unsuited", "clovastudio"),
    Body("naver-image-fetch", 400, _naver("40063", "Failed to fetch image"), "unsuited", "clovastudio"),
    Body("naver-model", 400, _naver("40080", "model not found"), "model", "clovastudio"),
    Body("naver-withdrawn", 400, _naver("40082", "model fade out"), "model", "clovastudio"),
    Body("naver-contract", 400, _naver("40083", "Contract ended"), "suspended", "clovastudio"),
    Body("naver-not-this-api", 400, _naver("40084", "API not supported for this model"), "model", "clovastudio"),
    Body("naver-no-app", 401, _naver("40100", "No Service App"), "access", "clovastudio"),
    Body("naver-key", 401, _naver("40104", "Invalid key"), "key", "clovastudio"),
    Body("naver-subscription", 401, _naver("40170", "No subscription"), "suspended", "clovastudio"),
    Body("naver-rate", 429, _naver("42901", "Too many requests - rate exceeded"), "rate_limited", "clovastudio"),
    Body("naver-gpu", 429, _naver("42902", "Too many requests - overloaded"), "overloaded", "clovastudio"),
    Body("naver-image-queue", 429, _naver("42903", "Image queue"), "overloaded", "clovastudio"),
    Body("naver-part", 424, _naver("42400", "Partial failure"), "server", "clovastudio"),
    Body("naver-not-implemented", 501, _naver("50100", "Not implemented"), "parameter", "clovastudio"),
    Body("naver-timeout", 504, _naver("50400", "Timeout"), "timeout", "clovastudio"),
    Body("naver-compatible", 400, _openai("model fade out", code="40082"), "model", "clovastudio"),
    Body("naver-native-200", 200, _naver("42901", "Too many requests"), "rate_limited", "clovastudio"),
    # ── Statuses and pages that say nothing else ────────────────────────────────────────────────────────
    Body("400", 400, _openai("Something about the request.", "invalid_request_error"), "parameter"),
    Body("400-empty", 400, "", "parameter"),
    Body("401", 401, None, "key"),
    Body("402", 402, {}, "credit"),
    Body("403", 403, {"message": "Forbidden"}, "permission"),
    Body("403-page", 403, "<html><title>Attention Required! | Cloudflare</title></html>", "permission"),
    Body("404", 404, "<html>404</html>", "model"),
    Body("405", 405, None, "address"),
    Body("408", 408, None, "timeout"),
    Body("409", 409, {"message": "Conflict"}, "server"),
    Body("413", 413, "<html>nginx</html>", "parameter"),
    Body("418", 418, None, "address"),
    Body("422", 422, {"detail": [{"loc": ["body", "n"], "msg": "too many", "type": "value_error"}]}, "parameter"),
    Body("429", 429, None, "rate_limited"),
    Body("500-page", 500, "<html>insufficient balance</html>", "server"),
    Body("500-request", 500, _openai("Nobody knows why", "invalid_request_error"), "server"),
    Body("502", 502, b"<!doctype html>", "server"),
    Body("503", 503, "", "overloaded"),
    Body("504", 504, None, "timeout"),
    Body("524", 524, None, "timeout"),
    Body("529", 529, None, "overloaded"),
    Body("302", 302, "moved", "address"),
    Body("200-unknown", 200, {"error": {"message": "what?"}}, "server"),
    # ── The client's own words decide nothing ───────────────────────────────────────────────────────────
    Body("echo-value", 400, _openai(f"Invalid value: '{_TOO_LOW}'", "invalid_request_error", "invalid_value", "stop"), "parameter", sent=_TOO_LOW),
    Body("echo-first", 400, _openai("Your credit balance is too low is not one of ['auto', 'none']", "invalid_request_error", param="tool_choice"), "parameter", sent="Your credit balance is too low"),
    Body("echo-first-no-param", 400, _openai("Insufficient balance is not of type 'array' - 'stop'", "invalid_request_error"), "parameter", sent="Insufficient balance"),
    Body("echo-whole-field", 400, _openai("Insufficient balance", "invalid_request_error", "invalid_value", "stop"), "parameter", sent='{"stop": "Insufficient balance"}'),
    Body("echo-sentence", 400, _anthropic("invalid_request_error", f"messages.0.content: invalid. {_TOO_LOW}"), "parameter", sent=f"translate: {_TOO_LOW}"),
    Body("echo-broken", 400, _anthropic("invalid_request_error", "messages.0: YOUR CREDIT BALANCE\n IS TOO LOW"), "parameter", sent='"your\\ncredit-balance is Too low"'),
    Body("echo-json", 400, _openai("Cannot parse: " + _INNER, "invalid_request_error"), "parameter", sent=f"What does this mean? {_INNER}"),
    Body("echo-raw", 400, {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": 'bad input {"error": {"code": "insufficient_quota"}}'}}}, "parameter", sent='{"error": {"code": "insufficient_quota"}}'),
    Body("echo-first-colon", 400, _openai("Insufficient balance: not a role", "invalid_request_error"), "parameter", sent="insufficient balance"),
    Body("echo-with-a-status", 402, _openai("Insufficient balance: not a role", "invalid_request_error"), "credit", sent="insufficient balance"),
    Body("echo-middle", 400, _openai("The text about an insufficient balance of the user cannot be processed", "invalid_request_error"), "parameter", sent="about an insufficient balance of the user"),
    Body("echo-korean", 400, _openai("처리할 수 없는 메시지: 잔액이 부족합니다", "invalid_request_error"), "parameter", sent="잔액이 부족합니다, 어떻게 하죠?"),
    Body("truth-not-echo", 400, _openai(f"Error code: 400 - {_TOO_LOW}", "invalid_request_error"), "credit"),
)  # fmt: skip
