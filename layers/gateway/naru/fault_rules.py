"""Whose fault a provider's error is: one table for all dialects, as data. :mod:`naru.faults` reads it.

A row gives a *kind* to machine-readable labels (``code``, ``type``, ``status``, ``details[].reason``, NAVER's numbers), to
a phrase, or to an HTTP status; a kind belongs to one *party*. Labels that are precise decide first, then phrases, then
vague labels, then the status. The bodies that the rows come from are in tests/unit/fault_bodies.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

Party = Literal["request", "deployment", "account", "load", "provider"]
FaultKind = Literal[
    # request: the client's; its words are passed on
    "parameter",
    "context_length",
    "content_filter",
    "unsuited",
    # deployment: this model, here
    "model",
    "region",
    "access",
    "feature",
    "address",
    # account: the gateway's key or account at the provider
    "key",
    "credit",
    "suspended",
    "permission",
    "terms",
    # load
    "rate_limited",
    "overloaded",
    "too_large",
    # provider: its health
    "server",
    "timeout",
]

PARTY_OF: Final[Mapping[FaultKind, Party]] = {
    **dict.fromkeys(("parameter", "context_length", "content_filter", "unsuited"), "request"),
    **dict.fromkeys(("model", "region", "access", "feature", "address"), "deployment"),
    **dict.fromkeys(("key", "credit", "suspended", "permission", "terms"), "account"),
    **dict.fromkeys(("rate_limited", "overloaded", "too_large"), "load"),
    **dict.fromkeys(("server", "timeout"), "provider"),
}

# ── Labels ──────────────────────────────────────────────────────────────────────────────────────────────
# Case and punctuation do not matter: DeploymentNotFound, deployment_not_found and "Deployment not found" are one label.

_PRECISE: Mapping[FaultKind, str] = {
    "context_length": "context_length_exceeded model_context_window_exceeded 40003",
    "content_filter": """content_filter content_policy_violation invalid_prompt moderation_blocked
        responsible_ai_policy_violation data_inspection_failed sensitive_words_detected prohibited_content
        content_moderation 40005 40006""",
    # NAVER: the model named a tool that does not exist, or an image could not be fetched; another model may do better.
    "unsuited": "40009 40063",
    "model": """model_not_found deployment_not_found not_found_error not_found model_not_available model_not_supported
        model_not_exist unknown_model invalid_model resource_not_found_exception unsupported_model model_deprecated model_decommissioned model_retired
        operation_not_supported no_available_channel get_channel_failed 40080 40082 40084""",
    "region": "unsupported_country_region_territory unsupported_region location_not_supported region_not_supported",
    "access": "model_access_denied model_not_allowed no_service_app",
    "key": """invalid_api_key api_key_invalid incorrect_api_key authentication_error unauthenticated invalid_authentication
        invalid_authentication_error invalid_token token_expired api_key_expired invalid_access_token
        invalid_signature credentials_missing 40101 40102 40103 40104""",
    "credit": """insufficient_quota billing_not_active billing_hard_limit_reached billing_error billing_disabled
        insufficient_user_quota insufficient_balance insufficient_credits insufficient_credit insufficient_funds
        pre_consume_token_quota_failed pre_consume_failed exceeded_current_quota exceeded_current_quota_error arrearage
        payment_required budget_exceeded quota_exhausted out_of_credits credit_balance_too_low billing_required
        allocation_quota_free_tier_only access_denied_unpurchased account_overdue account_overdue_error free_quota_exhausted
        40380""",
    "suspended": """account_deactivated account_suspended account_disabled account_terminated organization_disabled
        organization_deactivated deactivated_workspace consumer_suspended user_suspended api_key_disabled key_disabled
        access_terminated access_terminated_error user_banned user_deactivated project_disabled project_archived 40083
        40170""",
    "permission": """insufficient_permissions access_denied service_disabled api_key_service_blocked
        api_key_ip_address_blocked api_key_http_referrer_blocked access_token_scope_insufficient
        access_denied_exception ip_not_authorized ip_not_allowed mismatched_organization mismatched_project
        iam_permission_denied missing_scope rate_plan_forbidden""",
    "terms": """model_terms_required terms_not_accepted organization_verification_required verification_required
        organization_must_be_verified data_policy_mismatch""",
    "rate_limited": """rate_limit_exceeded rate_limit_error rate_limit_reached rate_limit rate_limited rate_limit_reached_error
        too_many_requests resource_exhausted requests tokens throttling throttling_exception throttling_rate_quota
        throttling_error service_quota_exceeded_exception limit_requests limit_tokens 42900 42901""",
    "overloaded": """overloaded_error overloaded engine_overloaded engine_overloaded_error server_overloaded
        service_unavailable service_unavailable_error slow_down unavailable model_overloaded server_busy no_capacity
        capacity_exceeded flex_tier_capacity_exceeded model_not_ready_exception 42902 42903""",
    "timeout": "timeout timeout_error deadline_exceeded request_timeout model_timeout_exception gateway_timeout 40800 50400",
    "server": "50000 42400 bad_response_status_code do_request_failed read_response_body_failed bad_response",
}

# About the request, unless the provider's sentence says otherwise: OpenAI calls an account that is not verified an
# "unsupported_value" of the field that would need it to be.
_PRECISE_PARAMETERS = """invalid_value unsupported_value unsupported_parameter unknown_parameter missing_required_parameter
    invalid_type invalid_json invalid_base64 invalid_image invalid_image_url invalid_image_format image_parse_error
    invalid_function_parameters invalid_schema array_above_max_length array_below_min_length string_above_max_length
    string_below_min_length integer_above_max_value integer_below_min_value decimal_above_max_value
    decimal_below_min_value request_too_large unprocessable_entity_error 40000 40001 40002 40004 50100"""

_VAGUE: Mapping[FaultKind, str] = {
    "parameter": "invalid_request_error invalid_argument bad_request bad_request_error validation_error validation_exception invalid_parameter",
    "key": "unauthorized 40100",
    "permission": "permission_error permission_denied permission_denied_error forbidden",
    "address": "failed_precondition",
    "server": """server_error internal_error internal_server_error api_error internal upstream_error bad_gateway aborted
        data_loss unknown_error""",
}

# Words of labels that are in no row: a label made of these and the rows' own says nothing that a user wrote.
_OTHER_WORDS = (
    "a an and api code error err exception failed failure for in is of on or provider status the to type unknown"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A row. ``labels`` confine its ``phrase``, where it has both."""

    id: str
    kind: FaultKind
    phrase: re.Pattern[str] | None = None
    labels: frozenset[str] = frozenset()


def squeezed(label: str) -> str:
    """The form in which labels are compared."""
    return re.sub(r"[^a-z0-9]", "", label.lower())


def _rules(rows: Mapping[FaultKind, str]) -> dict[str, Rule]:
    return {squeezed(name): Rule(name, kind) for kind, names in rows.items() for name in names.split()}


PRECISE: Final = _rules(_PRECISE)
PRECISE_PARAMETERS: Final = _rules({"parameter": _PRECISE_PARAMETERS})
VAGUE: Final = _rules(_VAGUE)
WORDS: Final = frozenset(
    word
    for names in (*_PRECISE.values(), _PRECISE_PARAMETERS, *_VAGUE.values(), _OTHER_WORDS)
    for name in names.split()
    for word in name.split("_")
    if not word.isdecimal()
)

# ── Labels with words ───────────────────────────────────────────────────────────────────────────────────


def _with_words(name: str, kind: FaultKind, labels: str, phrase: str) -> Rule:
    return Rule(name, kind, re.compile(phrase), frozenset(squeezed(label) for label in labels.split()))


QUALIFIED: Final = (
    _with_words("naver-images", "parameter", "40003", r"image|이미지"),
    # Google says RESOURCE_EXHAUSTED for a minute's limit, and for an account that has none at all.
    _with_words("google-limit-0", "credit", "resource_exhausted", r"\blimit: 0\b|credits are depleted|spending cap"),
    _with_words("request-over-limit", "too_large", "rate_limit_exceeded tokens", r"^request too large for "),
)
PER_DAY: Final = Rule("google-per-day", "credit")
"""A label that ends in one of Google's quota ids for a whole day."""

# ── Phrases ─────────────────────────────────────────────────────────────────────────────────────────────
# Matched where a sentence of the provider's may begin, in lower case, with blanks as single spaces. Each line is one.

_PHRASES: tuple[tuple[str, FaultKind, str], ...] = (
    # account: no credit
    ("credit-too-low", "credit", r"""
        (?:your )?credit balance is too low
    """),
    ("usage-limits-reached", "credit", r"""
        you have reached your specified (?:workspace )?(?:api )?usage limits
        you(?:'ve| have) (?:reached|exceeded|hit) (?:your|the) (?:[^ ]{1,20} ){0,2}(?:usage|spend|spending|billing|credit|budget|plan|monthly) (?:[^ ]{1,20} )?limit
        (?:open api )?(?:daily|monthly) (?:request|token|usage|spend|spending) (?:limit|quota) (?:has been )?(?:reached|exceeded)
        rate limit exceeded: .{0,30}per-day
        (?:your |the )?(?:[^ ]{1,20} )?(?:spend|spending) (?:limit|cap) (?:has been |is |was )?(?:reached|exceeded|hit)
    """),
    ("exceeded-current-quota", "credit", r"""
        you (?:have )?exceeded your current quota
    """),
    ("requires-more-credits", "credit", r"""
        this request requires more credits
    """),
    ("no-credit", "credit", r"""
        (?:(?:you|your account|the account|account|user|team) (?:have|has|have run|has run) )?(?:insufficient|not enough|no|no more|out of) (?:(?:account|user|token|api|remaining|available|prepaid|free) )*(?:credits?|balance|quota|funds)(?= ?(?:$|[.,;:!(\u2014-])| (?:left|remaining|available|to|in|on|balance|yet|and|please)\b)
        (?:you|your [^ ]{1,20}|your newly created [^ ]{1,20}|the account) (?:do not|don't|does not|doesn't) have (?:enough|sufficient|any) (?:[^ ]{1,20} )?(?:credits?|balance|quota|funds)
    """),
    ("credit-used-up", "credit", r"""
        (?:(?:your|the|this|account|user|token|team|api|key|prepayment|prepaid|free|trial|monthly|daily|chat) )*(?:pre-consumed )?(?:credits?|balance|quota|budget)(?: balance)? (?:(?:(?:is|are) )?(?:too low|not enough|insufficient|depleted|exhausted|used up|exceeded|negative|overdrawn|empty)|(?:has|have) been (?:depleted|exhausted|used up|exceeded|reached|consumed)|(?:failed|exceeded|exhausted|depleted)\b(?! for))
        (?:your |the |all )?(?:[^ ]{1,20} )?credits? (?:have|has) (?:run out|expired|all been used)
    """),
    ("over-budget", "credit", r"""
        exceededbudget
        (?:user|team|key|organization) .{0,60}over budget
    """),
    ("billing", "credit", r"""
        billing hard limit (?:has been )?reached
        your account is not active, please check your billing
        billing (?:account )?(?:is |has )?(?:not (?:been )?(?:enabled|active)|disabled|inactive)
        (?:please )?(?:enable|activate|set up) billing
        this api method requires billing
        payment required
        please (?:recharge|top up|purchase credits|upgrade to a paid)
        (?:your )?(?:free )?trial (?:has |is )?(?:ended|expired|over)
        (?:please )?(?:add|update) (?:a|your) payment method
        (?:your )?(?:account|subscription|plan) (?:is |has )?(?:past due|overdue|in arrears|unpaid|expired)
        (?:a |an active )?subscription (?:is )?(?:required|inactive|expired)
        (?:your |the )?subscription has (?:been )?(?:cancell?ed|expired|ended|lapsed)
        the billing account for .{1,60} is disabled
    """),
    ("credit-zh", "credit", r"""
        (?:您的|你的|当前|该|此)?(?:账户|账号|帐户|帐号|用户|令牌|订阅|api ?key)?(?:可用|剩余|总)?(?:余额|额度|配额)(?:不足|已用尽|已耗尽|用尽|用完|已用完)
        预扣费额度失败
        (?:您的)?(?:账户|账号|帐户)?已?欠费
        免费额度已
        请(?:先)?充值
    """),
    ("credit-ko", "credit", r"""
        (?:계정의? |보유 |사용 가능한 |남은 |무료 |유료 |api )*(?:크레딧|크레디트|잔액|충전금|선불금)(?:이|가|을|를)? ?(?:모두 |전부 |이미 |다 )?(?:부족|소진|없|초과|만료|사용|떨어)
        결제 ?수단을 (?:등록|확인)
        요금이? (?:미납|연체)
        (?:사용|이용) ?한도를? ?(?:모두 )?(?:초과|소진)
        할당량(?:을|이)? ?(?:초과|소진)
        충전(?:이 필요|해 ?주세요|후)
        결제 ?(?:정보|수단|카드)(?:가|를|을|이)? ?(?:등록|확인|없)
    """),
    # account: switched off
    ("switched-off", "suspended", r"""
        (?:organi[sz]ation|account|project|workspace|api key) (?:(?:has been|is|was) )?(?:currently |temporarily )?(?:disabled|deactivated|suspended|banned|terminated|revoked|on hold)
        (?:(?:this|your|the) )(?:organization|organisation|account|project|workspace|api key|key|user|team)(?: associated with this api key)? (?:has been|is|was) (?:currently |temporarily )?(?:disabled|deactivated|suspended|blocked|banned|terminated|closed|locked|restricted|revoked|on hold)
    """),
    ("consumer-suspended", "suspended", r"""
        permission denied: consumer .{1,120}has been suspended
    """),
    ("service-disabled", "suspended", r"""
        (?:this service|gemini) has been disabled in this account
    """),
    ("switched-off-zh", "suspended", r"""
        (?:您的|该|此)?(?:账户|账号|帐户|帐号|用户|令牌)(?:已被|已|状态)(?:封禁|禁用|冻结|停用|不可用)
    """),
    ("switched-off-ko", "suspended", r"""
        (?:이 |해당 )?(?:계정|조직|프로젝트|api ?키)(?:이|가)? (?:정지|비활성|차단|해지|중지)
    """),
    # account: the key
    ("key-refused", "key", r"""
        (?:incorrect|invalid|missing|expired|unknown|no) (?:x-)?api[- ]?key
        no auth credentials found
        (?:your |the )?api[- ]?key (?:is |has |was )?(?:invalid|incorrect|expired|missing|not valid|not found|been revoked)
        invalid (?:bearer|access|auth) token
        the api key .{0,80}(?:invalid|expired)
    """),
    ("key-refused-zh", "key", r"""
        无效的(?:令牌|api ?key|密钥)
        令牌已过期
        (?:api ?key|密钥|令牌)(?:无效|错误|已过期)
        未提供令牌
        (?:api ?key|密钥|令牌) (?:无效|错误|已过期)
    """),
    ("key-refused-ko", "key", r"""
        (?:유효하지 않은|잘못된|만료된) (?:api ?)?(?:키|토큰)
        (?:api ?)?키가 (?:유효하지|올바르지|만료)
    """),
    # account: what the key may not do
    ("ip-not-allowed", "permission", r"""
        (?:your |this |the )?(?:client )?ip(?: address)?\b.{0,60}(?:not (?:allowed|authorized|permitted|in the allow|whitelisted)|blocked)
        (?:request from )?(?:an )?unauthorized ip
        (?:您的 ?)?ip ?不在
        (?:your |this |the )?(?:client )?ip(?: address)? (?:[^ ]{1,45} )?(?:is )?not in (?:the |your )?(?:allow ?list|white ?list)
        (?:접근이 )?허용되지 않은 ?ip
        ip(?: ?주소)?(?:가|는)? ?(?:허용|차단)
    """),
    ("not-permitted", "permission", r"""
        (?:you have )?insufficient permissions
        missing scopes
        access denied
        permission denied
        you (?:do not|don't) have (?:the )?(?:required )?permissions?
        .{1,80} has not been used in project .{1,60} before or it is disabled
        无权访问
        无权限
        (?:접근 |사용 )?권한이 없
        (?:your |the |this )?(?:api )?key (?:does not|doesn't) have (?:the )?(?:[^ ]{1,20} )?(?:permissions?|access|scopes?)
        该?(?:令牌|密钥|api ?key) ?无权
        没有权限
    """),
    # account: something to be agreed to first
    ("terms", "terms", r"""
        your organi[sz]ation must be verified
        (?:the model .{1,100} )?requires? (?:terms acceptance|verification)
        (?:you must|please|you need to) (?:first )?(?:accept|agree to) .{0,60}(?:terms|license|agreement|eula)
        no endpoints found matching your data policy
        请先.{0,10}(?:实名认证|同意)
        (?:이용 ?)?약관.{0,10}동의
        (?:본인|실명|사업자) ?인증
        (?:to [^,]{1,60}, )?(?:your |the )?organi[sz]ation must be verified
        your (?:account|organi[sz]ation) (?:is not|must be|has not been|needs to be) verified
        (?:you (?:must|need to)|please) complete (?:your |the )?(?:organi[sz]ation |identity |account |business )?verification
        (?:the )?terms (?:of (?:service|use) )?(?:have |were |are )?(?:not|must be) (?:been )?accepted
    """),
    # deployment
    ("region", "region", r"""
        (?:user )?location is not supported
        (?:your )?(?:country|region|territory)(?:, region,? or territory)? (?:is )?not supported
        (?:[^ ]{1,60} ){0,6}(?:is|are) not (?:currently |yet )?(?:available|supported|allowed|offered) in your (?:country|region|location|area|territory)
        unsupported (?:country|region|location)
        access (?:to .{1,60} is not allowed from unsupported|from your (?:country|region|location))
        지원(?:되|하)지 않는 (?:지역|국가)
        (?:您|你)?所在的?(?:地区|国家)
        (?:해당|현재|이) (?:지역|국가)에서
        (?:[^ ]{1,60} ){0,6}(?:unavailable|not available|not supported|not offered) in your (?:country|region|location|area|territory)
        当前(?:地区|国家|区域)
    """),
    ("no-access", "access", r"""
        no service app
        (?:you|your (?:project|organi[sz]ation|account|team)|project .{1,60}) (?:do not|don't|does not|doesn't) have access to (?:the )?(?:.{0,40} )?model
        your (?:account|organi[sz]ation) is not authorized to (?:invoke|use|access)
        you are not allowed to (?:sample from|use|access) this model
        access to (?:the |this )?model (?:[^ ]{1,100} )?(?:is |was )?denied
        (?:this|the) model (?:[^ ]{1,100} )?is not available (?:on|in|for) (?:the free|your(?: current)?) (?:plan|tier|account|subscription)
        (?:모델 )?(?:이용|사용) ?(?:신청|승인)
        no access to (?:the |this )?model
        (?:you (?:must|need to)|please) request access
        (?:승인|허가|신청)(?:되지|하지) 않은 모델
    """),
    ("no-model", "model", r"""
        (?:the )?model:? [^ ]{1,100} (?:does not exist|(?:is |was )?not found|has been (?:deprecated|decommissioned|retired|removed))
        (?:the )?model:? [^ ]{1,100} is (?:deprecated|decommissioned|retired|no longer (?:available|supported)|not (?:available|supported)\b(?! (?:on|in|for) ))
        (?:this|the requested) model (?:has been|is) (?:deprecated|decommissioned|retired|removed|invalid|no longer|not available$|not available\.|not supported$|not supported\.)
        the provided model identifier is invalid
        invocation of model id .{1,100} isn't supported
        (?:unknown|invalid|unsupported) model\b(?! [a-z]{3,}s?\b)
        (?:the )?model (?:not found|not exist|fade ?out|does not exist)
        no such model
        [^ ]{1,100} is not a valid model id\b
        no endpoints found for [^ ]
        no available channel
        (?:当前)?分组 .{0,60}无可用渠道
        该?模型(?:不存在|无可用|已下线)
        (?:존재하지 않는|지원하지 않는|지원되지 않는|종료된) 모델
        (?:the )?(?:this )?model:? (?:[^ ]{1,100} )?(?:has been|was) (?:shut ?down|discontinued|sunset|disabled|withdrawn)
        the (?:api )?deployment (?:for this resource )?(?:does not exist|(?:was |is )?not found)
    """),
    ("no-feature", "feature", r"""
        no endpoints found that support
        (?:this|the) model(?: [^ ]{1,100})? (?:does(?: not|n't)|cannot|can't) (?:support|accept|process|take) (?:tools?|function|images?|vision|audio|video|json|structured|response_format|stream)
    """),
    # load
    ("rate", "rate_limited", r"""
        rate limit (?:reached|exceeded)
        too many requests
        quota exceeded for (?:quota )?metric
        (?:this request would exceed|number of (?:request|input|output) tokens has exceeded) your
        请求过于频繁
        当前请求过多
        请求(?:数|次数)?(?:超过|超出|达到)
        요청이 (?:너무 )?많
        (?:분당 )?요청 ?(?:한도|수)(?:를|가|이)? (?:초과|제한)
        (?:[^ ]{1,20} )?rate limits? (?:has been |was )?(?:reached|exceeded|hit)
        (?:tpm|rpm|qps|concurrency|concurrent requests?) limit (?:has been |was )?(?:reached|exceeded|hit)
        (?:requests|tokens) per (?:minute|second) (?:limit )?(?:reached|exceeded)
    """),
    ("request-over-limit", "too_large", r"""
        request too large for (?:model|organization|[^ ]+ (?:in|on))
    """),
    ("busy", "overloaded", r"""
        overloaded(?= ?[.:;,!(]|$)
        (?:the |this |that )?(?:model|server|engine|service|upstream)(?: [^ ]{1,100})? (?:is|are) (?:currently )?(?:overloaded|busy|at capacity|experiencing high)
        服务器?繁忙
        (?:当前)?(?:分组)?(?:上游)?负载(?:已饱和|过高)
        (?:서버|모델)(?:가|이)? (?:혼잡|과부하)
    """),
    # request
    ("too-long", "context_length", r"""
        this model's maximum context length is
        prompt is too long
        (?:the )?input (?:is too long|token count|tokens exceed)
        input length and .?max_tokens.? exceed
        (?:maximum )?context (?:length|window) (?:is )?exceeded
        text too long
    """),
    ("flagged", "content_filter", r"""
        [^ ]{1,100} requires moderation
        your (?:input|request|prompt) was (?:flagged|rejected|blocked)
        output blocked by content filtering
        the response was filtered
    """),
)  # fmt: skip
# A sentence may begin at the start, or after what a wrapper puts before the text of another: "Error 400: …", "… - …".
_BEGINNING: Final = r"(?:^|[.:;!?>\]})|\-\u2013\u2014'\"\u201c\u3002\uff01\uff0c\uff1a\uff1b]\s*|\b[45]\d\d )"
# "Your credit balance is too low" is not what the provider says where it goes on "… is not a valid stop sequence".
_NO_SUBJECT: Final = (
    r"(?!['\"`\u2019\u201d]?\s+(?:is|are|was|were|does|did|must|should|cannot|contains|isn't|doesn't)\b)"
)


def _either(lines: str) -> str:
    return "|".join(line.strip() for line in lines.strip().splitlines())


@cache
def phrases() -> tuple[Rule, ...]:
    """The table of phrases, compiled when the first error comes: that takes 40 ms, which no cold start needs."""
    return tuple(
        Rule(name, kind, re.compile(f"{_BEGINNING}(?P<said>{_either(lines)}){_NO_SUBJECT}"))
        for name, kind, lines in _PHRASES
    )


# ── Statuses ────────────────────────────────────────────────────────────────────────────────────────────

STATUSES: Final[Mapping[int, FaultKind]] = {
    **dict.fromkeys((400, 413, 414, 415, 422), "parameter"),
    401: "key",
    402: "credit",
    **dict.fromkeys((403, 407), "permission"),
    **dict.fromkeys((404, 410), "model"),
    **dict.fromkeys((408, 499, 504, 522, 524, 598), "timeout"),
    **dict.fromkeys((409, 424, 425), "server"),  # nothing that a request for one answer can be in conflict with
    **dict.fromkeys((429,), "rate_limited"),
    451: "region",
    **dict.fromkeys((498, 503, 529), "overloaded"),
    501: "feature",
}
SAYS_LITTLE: Final = frozenset({200, 400, 500, 502, 503})
"""Statuses under which wrappers report another one in the body."""


def kind_of_status(status: int) -> FaultKind:
    """What a status means by itself. Every status has a meaning: a 4xx that is not about the body is no client's fault."""
    if status in STATUSES:
        return STATUSES[status]
    return "server" if status >= 500 or status == 200 else "address"
