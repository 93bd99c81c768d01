"""The words of reports and alerts, in Korean and in English."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal
from zoneinfo import ZoneInfo

Language = Literal["ko", "en"]

_DAYS = {"ko": "월화수목금토일", "en": ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")}

WORDS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "title_day": "Naru, {date} ({weekday})",
        "title_month": "Naru, {date}",
        "cost": "Cost",
        "requests": "Requests",
        "errors": "Errors",
        "tokens": "Tokens",
        "tokens_line": "{prompt} in (of them {cached} cached), {completion} out (of them {reasoning} reasoning)",
        "requests_line": "{requests}; errors {errors} ({rate}), refused by the provider {rejected}",
        "first_token": "First token",
        "latency": "Whole answer",
        "percentiles_line": "half within {p50}, 95 % within {p95}, 99 % within {p99}",
        "calls": "Calls upstream",
        "calls_line": "{calls}, {failed} failed; retries {retries}, failovers {failovers}, fallbacks {fallbacks}, continued {continuations}",
        "certainty": "Certainty",
        "certainty_line": "estimated {estimated} ({estimated_rate}), unknown {unknown} ({unknown_usd} USD)",
        "change": "Change",
        "change_line": "{percent} against {against} ({usd} USD)",
        "requests_cell": "{count} requests",
        "errors_cell": "{count} {outcome}",
        "outcome_failed": "failed",
        "outcome_truncated": "cut off",
        "outcome_rejected": "refused",
        "outcome_unknown": "unknown",
        "no_change": "nothing to compare with ({against} had no cost)",
        "month": "Month to date",
        "month_line": "{usd} USD ({krw} KRW), {percent} of {budget} USD",
        "month_line_unlimited": "{usd} USD ({krw} KRW), no budget",
        "projection": "Month end",
        "projection_line": "about {expected} USD (four of five times {low} to {high})",
        "exhausted_line": "the budget is gone on {date}",
        "lasts_line": "the budget lasts",
        "anomalies": "Out of the ordinary",
        "nothing": "nothing",
        "by_model": "By model",
        "by_deployment": "By deployment",
        "by_key": "By key",
        "by_tag": "By tag",
        "by_user": "By end user",
        "top_errors": "Errors by kind",
        "per_day": "Cost per day",
        "per_hour": "Cost per hour",
        "not_closed": "Not final: it is not over yet, or requests of it are still in flight.",
        "name": "Name",
        "share": "Share",
        "empty": "No requests.",
        "footer": "Exact figures: naru report --date {period}",
        "footer_month": "Exact figures: naru report --month {period}",
        "cost_high": "Cost {cost} USD, {times} times the usual {expected} USD.",
        "cost_low": "Cost {cost} USD, only {times} times the usual {expected} USD.",
        "errors_high": "{errors} requests failed, {rate} of all; usual is {usual_rate}.",
        "outage": "{deployment} failed for half of its calls or more, from {from} to {to}.",
        "slow": "95 % of the answers took up to {p95}; usual is {usual_p95}.",
        "unknown": "{requests} requests of unknown end were charged at their worst case, {cost} USD.",
        "estimated": "The tokens of {requests} requests ({rate}) are estimates: the provider did not say.",
        "new_key": "New: the key {name} spent {cost} USD.",
        "new_model": "New: the model {model} cost {cost} USD.",
        "key_jump": "The key {name} spent {cost} USD, {times} times its usual {expected} USD.",
        "alert_organisation": "The organisation has spent {percent} % of its budget for {month}: {spent} of {budget} USD.",
        "alert_key": "The key {name} has spent {percent} % of its budget for {month}: {spent} of {budget} USD.",
        "alert_reached": "Threshold reached: {threshold} %.",
        "alert_gone": "At this pace the budget is gone on {at}.",
        "alert_lasts": "At this pace it lasts until the end of the month (about {expected} USD).",
        "alert_spent": "The budget is spent: further requests are refused (429 insufficient_quota) until {resets}.",
        "alert_who_keys": "Who spent it this month:",
        "alert_who_users": "Its dearest end users this month:",
        "alert_commands": "Raise it: {command}",
        "spike": "The hour from {from} cost {cost} USD, {times} times its usual {usual} USD.",
        "spike_so_far": "The hour from {from} has cost {cost} USD so far, {times} times its usual {usual} USD.",
        "spike_who": "Who spent it in this hour:",
        "test": "This is a test of Naru's alerts, asked for with an admin key. Nothing has happened.",
    },
    "ko": {
        "title_day": "나루 {date} ({weekday})",
        "title_month": "나루 {date}",
        "cost": "비용",
        "requests": "요청",
        "errors": "오류",
        "tokens": "토큰",
        "tokens_line": "입력 {prompt} (캐시 {cached}), 출력 {completion} (추론 {reasoning})",
        "requests_line": "{requests}건, 오류 {errors}건 ({rate}), 제공자 거절 {rejected}건",
        "first_token": "첫 토큰",
        "latency": "전체 응답",
        "percentiles_line": "절반은 {p50}, 95 %는 {p95}, 99 %는 {p99} 이내",
        "calls": "제공자 호출",
        "calls_line": "{calls}회, 실패 {failed}회, 재시도 {retries}, 우회 {failovers}, 대체 모델 {fallbacks}, 이어받기 {continuations}",
        "certainty": "정확도",
        "certainty_line": "추정 {estimated}건 ({estimated_rate}), 결과 불명 {unknown}건 ({unknown_usd} USD)",
        "change": "증감",
        "change_line": "{against} ({usd} USD) 대비 {percent}",
        "requests_cell": "{count}건",
        "errors_cell": "{outcome} {count}건",
        "outcome_failed": "실패",
        "outcome_truncated": "잘림",
        "outcome_rejected": "거절",
        "outcome_unknown": "결과 불명",
        "no_change": "비교할 비용 없음 ({against})",
        "month": "이번 달 누계",
        "month_line": "{usd} USD ({krw}원), 예산 {budget} USD의 {percent}",
        "month_line_unlimited": "{usd} USD ({krw}원), 예산 없음",
        "projection": "월말 예상",
        "projection_line": "약 {expected} USD (다섯 번 중 네 번은 {low}~{high})",
        "exhausted_line": "예산은 {date}에 소진",
        "lasts_line": "예산은 월말까지 유지",
        "anomalies": "눈에 띄는 점",
        "nothing": "없음",
        "by_model": "모델별",
        "by_deployment": "배포별",
        "by_key": "키별",
        "by_tag": "태그별",
        "by_user": "최종 사용자별",
        "top_errors": "오류 종류",
        "per_day": "일별 비용",
        "per_hour": "시간별 비용",
        "not_closed": "확정 전: 기간이 끝나지 않았거나 처리 중인 요청이 있습니다.",
        "name": "이름",
        "share": "비중",
        "empty": "요청이 없습니다.",
        "footer": "정확한 값: naru report --date {period}",
        "footer_month": "정확한 값: naru report --month {period}",
        "cost_high": "비용 {cost} USD, 평소({expected} USD)의 {times}배입니다.",
        "cost_low": "비용 {cost} USD, 평소({expected} USD)의 {times}배에 그쳤습니다.",
        "errors_high": "요청 {errors}건 실패, 전체의 {rate} (평소 {usual_rate}).",
        "outage": "{from}부터 {to}까지 {deployment} 호출의 절반 이상이 실패했습니다.",
        "slow": "응답의 95 %가 {p95} 이내 (평소 {usual_p95}).",
        "unknown": "결과를 알 수 없는 요청 {requests}건을 최대 비용 {cost} USD로 계산했습니다.",
        "estimated": "요청 {requests}건({rate})의 토큰은 추정값입니다. 제공자가 알려 주지 않았습니다.",
        "new_key": "새 키: {name}, {cost} USD.",
        "new_model": "새 모델: {model}, {cost} USD.",
        "key_jump": "키 {name}: {cost} USD, 평소({expected} USD)의 {times}배입니다.",
        "alert_organisation": "조직: {month} 예산의 {percent} %를 썼습니다 ({budget} USD 중 {spent} USD).",
        "alert_key": "키 {name}: {month} 예산의 {percent} %를 썼습니다 ({budget} USD 중 {spent} USD).",
        "alert_reached": "도달한 기준: {threshold} %.",
        "alert_gone": "이 속도라면 예산은 {at}에 소진됩니다.",
        "alert_lasts": "이 속도라면 월말까지 유지됩니다 (약 {expected} USD).",
        "alert_spent": "예산을 모두 썼습니다. {resets}까지 새 요청은 거절됩니다 (429 insufficient_quota).",
        "alert_who_keys": "이번 달에 쓴 키:",
        "alert_who_users": "이번 달에 가장 많이 쓴 최종 사용자:",
        "alert_commands": "예산 늘리기: {command}",
        "spike": "{from}부터 한 시간 동안 {cost} USD를 썼습니다. 평소({usual} USD)의 {times}배입니다.",
        "spike_so_far": "{from}부터 지금까지 {cost} USD를 썼습니다. 평소({usual} USD)의 {times}배입니다.",
        "spike_who": "이 시간에 쓴 키:",
        "test": "나루 알림 시험입니다. 관리자 키로 요청했으며, 아무 일도 일어나지 않았습니다.",
    },
}


class Voice:
    """Says figures in one language, at the clock of one time zone."""

    def __init__(self, language: Language, zone: ZoneInfo) -> None:
        self.language: Language = language
        self._zone = zone
        self._words = WORDS[language]

    def say(self, phrase: str, /, **values: Any) -> str:
        return self._words[phrase].format(**values)

    def usd(self, amount: Decimal | int | None) -> str:
        """To the cent, and to three digits where there is less than that."""
        if amount is None:
            return "-"
        amount = Decimal(amount)
        unit = Decimal("0.01")
        if 0 < abs(amount) < unit:
            unit = Decimal(1).scaleb(amount.adjusted() - 2)
        return f"{amount.quantize(unit, ROUND_HALF_UP):,f}"

    def weekday(self, day: date) -> str:
        return _DAYS[self.language][day.weekday()]

    def moment(self, at_s: int) -> str:
        """``11-28 14:30``, on the clock of the business."""
        return datetime.fromtimestamp(at_s, UTC).astimezone(self._zone).strftime("%m-%d %H:%M")

    def clock(self, at_s: int) -> str:
        return datetime.fromtimestamp(at_s, UTC).astimezone(self._zone).strftime("%H:%M")


def number(value: int) -> str:
    return f"{value:,}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s" if milliseconds < 10_000 else f"{milliseconds / 1000:.1f} s"


def times(cost: Decimal, expected: Decimal) -> str:
    return f"{cost / expected:.1f}" if expected else "-"


def anomaly_text(voice: Voice, anomaly: Mapping[str, Any]) -> str:
    """One of a report's anomalies, as a sentence."""
    code, values = anomaly["code"], dict(anomaly)
    shown: dict[str, Any] = {}
    for name, value in values.items():
        match name:
            case "from" | "to":
                shown[name] = voice.clock(value)
            case "rate" | "usual_rate":
                shown[name] = percent(value)
            case "p95_ms" | "usual_p95_ms":
                shown[name.removesuffix("_ms")] = seconds(value)
            case "cost_usd" | "expected_usd":
                shown[name.removesuffix("_usd")] = voice.usd(value)
            case _:
                shown[name] = number(value) if isinstance(value, int) else value
    if "expected_usd" in values:
        shown["times"] = times(values["cost_usd"], values["expected_usd"])
    return voice.say(code, **{name: value for name, value in shown.items() if name != "code"})
