"""A report as text and as an HTML mail, from its JSON.

The mail's chart is a table of coloured cells. Mail clients show no SVG and block pictures until they are asked, and a
table is read aloud as what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from html import escape
from typing import Any
from zoneinfo import ZoneInfo

from naru.report_words import Language, Voice, anomaly_text, number, percent, seconds

_TOP = 5
_SUBJECT_LIMIT = 100  # SNS takes no more, and no letters beyond ASCII


def subject(report: Mapping[str, Any]) -> str:
    """For SNS and mail: ASCII."""
    total = Voice("en", ZoneInfo("UTC")).usd(report["total"]["cost_usd"])
    remark = f", {len(report['anomalies'])} remarks" if report["anomalies"] else ""
    return f"[Naru] {report['period']}: {total} USD, {report['total']['requests']} requests{remark}"[:_SUBJECT_LIMIT]


def text(report: Mapping[str, Any], language: Language) -> str:
    """Readable without anything."""
    voice = _voice(report, language)
    lines = [_title(voice, report), ""]
    if not report["closed"]:
        lines += [voice.say("not_closed"), ""]
    lines += [f"{name}: {fact}" for name, fact in facts(voice, report)]
    lines += ["", f"{voice.say('anomalies')}:"]
    lines += [f"- {anomaly_text(voice, each)}" for each in report["anomalies"]] or [f"- {voice.say('nothing')}"]
    for group, heading, rows in groups(voice, report):
        if rows:
            lines += ["", heading]
            lines += [f"- {name}: {cells}" for name, cells in ((row[0], ", ".join(row[1:])) for row in rows[:_TOP])]
            if len(rows) > _TOP and group != "by_user":
                lines.append(f"- … +{len(rows) - _TOP}")
    footer = voice.say("footer" if report["kind"] == "day" else "footer_month", period=report["period"])
    return "\n".join([*lines, "", footer, ""])


def facts(voice: Voice, report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What comes first, as pairs of a name and a line."""
    say, total = voice.say, report["total"]
    yield say("cost"), f"{voice.usd(total['cost_usd'])} USD ({number(total['cost_krw'])} KRW)"
    requests = total["requests"]
    yield (
        say("requests"),
        say(
            "requests_line",
            requests=number(requests),
            errors=number(total["errors"]),
            rate=percent(total["errors"] / requests if requests else 0),
            rejected=number(total["outcomes"].get("rejected", 0)),
        ),
    )
    tokens = {name: number(total[f"{name}_tokens"]) for name in ("prompt", "cached", "completion", "reasoning")}
    yield say("tokens"), say("tokens_line", **tokens)
    for name in ("first_token", "latency"):
        if (found := report[f"{name}_ms"]) is not None:
            yield say(name), say("percentiles_line", **{key: seconds(value) for key, value in found.items()})
    calls = {name: number(value) for name, value in report["calls"].items()}
    yield say("calls"), say("calls_line", failed=calls["failed_calls"], **calls)
    unknown = total["unknown"]
    yield (
        say("certainty"),
        say(
            "certainty_line",
            estimated=number(total["estimated"]),
            estimated_rate=percent(total["estimated"] / requests if requests else 0),
            unknown=number(unknown["requests"]),
            unknown_usd=voice.usd(unknown["cost_usd"]),
        ),
    )
    if (change := report["change"]) is not None:
        if change["percent"] is None:
            yield say("change"), say("no_change", against=change["against"])
        else:
            shown = f"{change['percent']:+.1f} %"
            yield say("change"), say("change_line", percent=shown, against=change["against"], usd=voice.usd(change["cost_usd"]))  # fmt: skip
    if (month := report["month"]) is not None:
        yield say("month"), month_line(voice, month)
        if month["projected_usd"] is not None:
            yield say("projection"), projection_line(voice, month)


def month_line(voice: Voice, month: Mapping[str, Any]) -> str:
    """Month to date against the budget."""
    spent = {"usd": voice.usd(month["cost_usd"]), "krw": number(month["cost_krw"])}
    if month["budget_usd"] is None:
        return voice.say("month_line_unlimited", **spent)
    share = "-" if month["budget_percent"] is None else f"{month['budget_percent']:.1f} %"
    return voice.say("month_line", **spent, percent=share, budget=voice.usd(month["budget_usd"]))


def projection_line(voice: Voice, month: Mapping[str, Any]) -> str:
    """Where the month ends."""
    names = {"expected": "projected_usd", "low": "projected_low_usd", "high": "projected_high_usd"}
    line = voice.say("projection_line", **{name: voice.usd(month[field]) for name, field in names.items()})
    if month["budget_usd"] is None:
        return line
    if month["exhausted_on"] is None:
        return f"{line}, {voice.say('lasts_line')}"
    return f"{line}, {voice.say('exhausted_line', date=month['exhausted_on'])}"


def groups(voice: Voice, report: Mapping[str, Any]) -> Iterator[tuple[str, str, list[list[str]]]]:
    """The tables: which, its heading, its rows of name, cost, share, requests."""
    whole = report["total"]["cost_usd"]
    names = {
        "by_model": "model",
        "by_key": "name",
        "by_deployment": "deployment",
        "by_tag": "tag",
        "by_user": "end_user",
    }
    for group, name in names.items():
        rows = [_row(voice, line, _name(line, name), whole) for line in report[group]]
        yield group, voice.say(group), rows
    errors = [
        [
            error["code"],
            voice.say("errors_cell", count=number(error["count"]), outcome=voice.say(f"outcome_{error['outcome']}")),
        ]
        for error in report["errors"]
    ]
    yield "errors", voice.say("top_errors"), errors


def _name(line: Mapping[str, Any], field: str) -> str:
    """Two apps may have a user of the same name."""
    name = " ".join(str(line[field]).split())[:100]
    return f"{name} ({line['key_name']})" if field == "end_user" else name


def _row(voice: Voice, line: Mapping[str, Any], name: str, whole: Decimal) -> list[str]:
    cost = Decimal(line["cost_usd"])
    share = percent(float(cost / whole)) if whole else "-"
    return [name, f"{voice.usd(cost)} USD", share, voice.say("requests_cell", count=number(line["requests"]))]


def _title(voice: Voice, report: Mapping[str, Any]) -> str:
    if report["kind"] == "month":
        return voice.say("title_month", date=report["period"])
    return voice.say("title_day", date=report["period"], weekday=voice.weekday(date.fromisoformat(report["period"])))


def _voice(report: Mapping[str, Any], language: Language) -> Voice:
    return Voice(language, ZoneInfo(report["time_zone"]))


# ── HTML ───────────────────────────────────────────────────────────────────────────────────────────────────

_FONT = "font-family:-apple-system,'Segoe UI','Apple SD Gothic Neo','Malgun Gothic','Noto Sans KR',sans-serif"
_INK, _PALE, _LINE, _BAR, _BAD = "#14213d", "#5b6478", "#e3e7ee", "#2a6f97", "#b3261e"
_CELL = f"padding:4px 8px 4px 0;border-bottom:1px solid {_LINE};vertical-align:top"
_WIDTHS = ("50%", "20%", "12%", "18%")


def html(report: Mapping[str, Any], language: Language) -> str:
    """A mail: tables and inline styles only, since that is what mail clients agree on."""
    voice = _voice(report, language)
    title, total = _e(_title(voice, report)), report["total"]
    parts = [
        f"""<!DOCTYPE html><html lang="{language}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{title}</title></head>
<body style="margin:0;padding:16px;background:#f5f7fa;color:{_INK};{_FONT};font-size:14px;line-height:1.5">
<table role="presentation" width="100%" cellpadding="0" cellspacing="0"><tr><td align="center">
<table role="presentation" width="640" cellpadding="0" cellspacing="0"
 style="max-width:640px;width:100%;background:#ffffff;border-radius:8px"><tr><td style="padding:24px">
<h1 style="margin:0 0 4px;font-size:20px">{title}</h1>
<p style="margin:0 0 16px;font-size:28px;font-weight:600">{_e(voice.usd(total["cost_usd"]))} USD
<span style="font-size:16px;font-weight:400;color:{_PALE}">{number(total["cost_krw"])} KRW</span></p>""",
    ]
    if not report["closed"]:
        parts.append(f'<p style="color:{_BAD}">{_e(voice.say("not_closed"))}</p>')
    parts += [_anomalies(voice, report), _facts_table(voice, report), _chart(voice, report)]
    parts += [_group(heading, rows) for _, heading, rows in groups(voice, report) if rows]
    footer = voice.say("footer" if report["kind"] == "day" else "footer_month", period=report["period"])
    parts.append(f'<p style="margin:24px 0 0;color:{_PALE};font-size:12px">{_e(footer)}</p>')
    parts.append("</td></tr></table></td></tr></table></body></html>")
    return "\n".join(parts) + "\n"


def _anomalies(voice: Voice, report: Mapping[str, Any]) -> str:
    if not report["anomalies"]:
        return ""
    items = "".join(f"<li>{_e(anomaly_text(voice, each))}</li>" for each in report["anomalies"])
    return (
        f'<div style="margin:0 0 16px;padding:12px 16px;background:#fdf3f2;border-left:4px solid {_BAD}">'
        f'<strong>{_e(voice.say("anomalies"))}</strong><ul style="margin:4px 0 0;padding-left:20px">{items}</ul></div>'
    )


def _facts_table(voice: Voice, report: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th align="left" scope="row" style="{_CELL};font-weight:400;color:{_PALE};white-space:nowrap">{_e(name)}</th>'
        f'<td style="{_CELL}">{_e(fact)}</td></tr>'
        for name, fact in list(facts(voice, report))[1:]
    )
    return f'<table width="100%" cellpadding="0" cellspacing="0" style="border-collapse:collapse">{rows}</table>'


def _chart(voice: Voice, report: Mapping[str, Any]) -> str:
    """Days as bars; the last one, which the report is about, in full colour."""
    points: Sequence[Mapping[str, Any]] = report["days"]
    highest = max((Decimal(point["cost_usd"]) for point in points), default=Decimal(0))
    if not highest:
        return ""
    rows = []
    for point in points:
        cost, day = Decimal(point["cost_usd"]), date.fromisoformat(point["date"])
        # Of its cell and not in pixels: on a phone those of all days were squeezed to the same.
        width = int(100 * cost / highest)
        colour = _BAR if point["date"] == report["period"] or report["kind"] == "month" else "#a9c7d8"
        bar = (
            f'<table role="presentation" width="{width}%" cellpadding="0" cellspacing="0"><tr><td height="12" '
            f'style="height:12px;line-height:12px;font-size:0;background:{colour}">&nbsp;</td></tr></table>'
            if width
            else ""
        )
        rows.append(
            f'<tr><th align="left" scope="row" style="padding:2px 8px 2px 0;font-weight:400;color:{_PALE};white-space:nowrap">'
            f'{day:%m-%d} {_e(voice.weekday(day))}</th><td width="100%">{bar}</td>'
            f'<td align="right" style="padding:2px 0 2px 8px;white-space:nowrap">{_e(voice.usd(cost))}</td></tr>'
        )
    return (
        f'<h2 style="margin:24px 0 8px;font-size:16px">{_e(voice.say("per_day"))} (USD)</h2>'
        f'<table width="100%" cellpadding="0" cellspacing="0" style="border-collapse:collapse">{"".join(rows)}</table>'
    )


def _group(heading: str, rows: Sequence[Sequence[str]]) -> str:
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td align="{"left" if index == 0 else "right"}" width="{_WIDTHS[index]}" '
            f'style="{_CELL};{"word-break:break-word" if index == 0 else "white-space:nowrap"}">{_e(cell)}</td>'
            for index, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows[:10]
    )
    more = f'<p style="margin:4px 0 0;color:{_PALE}">… +{len(rows) - 10}</p>' if len(rows) > 10 else ""
    return (
        f'<h2 style="margin:24px 0 8px;font-size:16px">{_e(heading)}</h2>'
        f'<table width="100%" cellpadding="0" cellspacing="0" style="border-collapse:collapse">{lines}</table>{more}'
    )


def _e(text_: str) -> str:
    return escape(text_, quote=True)
