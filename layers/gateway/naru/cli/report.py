"""``naru report`` and ``naru alerts``."""

from __future__ import annotations

import argparse
from typing import Any
from zoneinfo import ZoneInfo

from naru.amounts import read_json
from naru.cli.keys import AdminApi
from naru.cli.output import CommandError, MisuseError, note, show, show_content, show_facts, show_json, show_table
from naru.report_text import facts, groups
from naru.report_words import Language, Voice, anomaly_text

_BAR = 40


def show_report(arguments: argparse.Namespace) -> None:
    """Prints a report, or writes it into a file."""
    api = AdminApi.of(arguments)
    period = _period(arguments)
    form = "json" if arguments.json else arguments.format
    language: dict[str, str] = {"language": arguments.language} if arguments.language else {}
    if form == "table" and arguments.output is not None:
        raise MisuseError("--output takes a --format of json, csv or html")
    if form == "table":
        # The words are chosen here, by the gateway's own module: its text says the same.
        _show_table(read_json(api.text(f"usage/reports/{period}", {"format": "json"})), arguments.language or "en")
        return
    content = api.text(f"usage/reports/{period}", {"format": form, **language})
    if arguments.output is None:
        show_content(content, is_json=form == "json")
        return
    try:
        # A spreadsheet takes a CSV without the mark for its country's old code page.
        encoding = "utf-8-sig" if form == "csv" else "utf-8"
        arguments.output.write_text(content, encoding=encoding, newline="")
    except OSError as error:
        raise CommandError(f"{arguments.output} cannot be written: {error.strerror}") from None
    note(f"{period}: {arguments.output}")


def test_alerts(arguments: argparse.Namespace) -> None:
    """Has the gateway send a test message."""
    said = AdminApi.of(arguments).call("POST", "alerts/test", {})
    if arguments.json:
        show_json(said)
    else:
        note("Sent. Who is subscribed to the stack's AlertsTopic has it in a moment.")


def _period(arguments: argparse.Namespace) -> str:
    if arguments.month is not None:
        return f"{arguments.month:%Y-%m}"
    # Which day yesterday was is the gateway's to say: its clock has the business's time zone.
    return arguments.date.isoformat() if arguments.date is not None else "yesterday"


def _show_table(report: dict[str, Any], language: Language) -> None:
    voice = Voice(language, ZoneInfo(report["time_zone"]))
    show(f"{report['period']}, {report['time_zone']}")
    if not report["closed"]:
        show(voice.say("not_closed"))
    show()
    show_facts(dict(facts(voice, report)))
    show()
    show(voice.say("anomalies"))
    for anomaly in report["anomalies"]:
        show(f"  ! {anomaly_text(voice, anomaly)}")
    if not report["anomalies"]:
        show(f"  {voice.say('nothing')}")
    show()
    show(f"{voice.say('per_day')} (USD)")
    highest = max((day["cost_usd"] for day in report["days"]), default=0)
    for day in report["days"]:
        bar = "█" * round(_BAR * day["cost_usd"] / highest) if highest else ""
        show(f"  {day['date']}  {voice.usd(day['cost_usd']):>12}  {bar}")
    for _, heading, rows in groups(voice, report):
        if rows:
            show()
            blank = [""] * (len(rows[0]) - 1)
            show_table([heading, *blank], rows)
