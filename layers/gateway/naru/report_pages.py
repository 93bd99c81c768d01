"""``GET /usage/reports/{period}``: the report of a day (2026-11-22, yesterday) or a month
(2026-11) in the form that is asked for."""

from __future__ import annotations

from datetime import timedelta

from naru import report_text
from naru.accounts import Accounts
from naru.amounts import write_json
from naru.business_time import business_day
from naru.errors import InvalidRequestError
from naru.report import Terms, daily_report, monthly_report
from naru.report_words import Language
from naru.usage import Usage
from naru.usage_query import Query, one, parse_day, parse_month

_KINDS = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "text": "text/plain; charset=utf-8",
}


def page(
    usage: Usage, period: str, query: Query, accounts: Accounts, *, krw_per_usd: int, language: Language, now_ms: int
) -> tuple[str, bytes]:
    """Its content type and its content. Blocks.

    ``format`` is json, csv, html or text; ``language`` ko or en. Raises :class:`~naru.errors.InvalidRequestError`.
    """
    form, wanted = one(query, "format") or "json", one(query, "language") or language
    if form not in _KINDS:
        raise _wrong("format", f"it must be one of {', '.join(_KINDS)}")
    if wanted not in {"ko", "en"}:
        raise _wrong("language", "it must be ko or en")
    said: Language = "ko" if wanted == "ko" else "en"
    today = business_day(now_ms, usage.zone)
    is_month = len(period) == len("2026-11")
    if period == "yesterday":
        first = today - timedelta(days=1)
    else:
        first = parse_month("period", period) if is_month else parse_day("period", period)
    if first > today:
        raise _wrong("period", "it has not begun yet")
    make = monthly_report if is_month else daily_report
    made = make(usage, first, accounts, Terms(accounts.budget_pico_usd, krw_per_usd), now_ms=now_ms)
    if form == "csv":
        return _KINDS[form], made.as_csv().encode()
    content = made.as_json()
    match form:
        case "html":
            text = report_text.html(content, said)
        case "text":
            text = report_text.text(content, said)
        case _:
            text = write_json(content)
    return _KINDS[form], text.encode()


def _wrong(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid value for '{name}': {what}.", param=name, code="invalid_value")
