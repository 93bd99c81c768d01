"""``python -m benchmarks report``: what a busy day costs to report: time, memory and read units, by its rows.

The rows lie in the emulator's DynamoDB, or, where that is the slower, in a small server that answers the same queries.
They are read, parsed and folded by the code of the functions, in processes of their own whose processor time and memory
are measured: one makes the roll-ups of the day, another its report, after five weeks of days that are as busy.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from zoneinfo import ZoneInfo

import boto3
from samtranslator.yaml_helper import yaml_parse

from benchmarks.figures import publish, table
from benchmarks.units import item_bytes
from local import history
from local.emulator import CREDENTIALS, REGION, emulator
from local.gateway import in_thread
from local.template import REPOSITORY, TEMPLATE
from naru import report_text
from naru.accounts import Accounts
from naru.amounts import write_json
from naru.api_keys import MonthView, OrganisationView
from naru.aws_prices import REGIONS
from naru.closing import Closing
from naru.keys import new_key_id, new_secret
from naru.ledger import Row, key_of, to_item
from naru.ledger_reader import LedgerReader
from naru.periods import Hour, day_end_ms, day_start_ms, hours_of, month_of
from naru.plain_items import take_items_plain
from naru.projection import HISTORY_DAYS
from naru.report import Terms, daily_report
from naru.report_store import ReportStore
from naru.usage import Usage

ZONE = ZoneInfo("Asia/Seoul")
DAY = date(2026, 11, 19)
SIZES = ((10_000, True), (10_000, False), (100_000, False), (300_000, False))
"""How many rows, and whether the emulator holds them."""
_FIGURES = ("cpu_s", "peak_mb", "report_cpu_s", "report_peak_mb", "roll_up_kb")
_MILLION = 10**6
_UNIT_BYTES = 4096
_USERS = 20_000
_TABLES = ("LedgerTable", "MeterTable", "ReportTable")


def run() -> dict[str, Any]:
    """Measures, prints and publishes."""
    measured = []
    with TemporaryDirectory() as folder, in_thread(lambda: emulator(Path(folder), logs=Path(folder))) as aws:
        client = _client(aws.url)
        for name, properties in _tables().items():
            client.create_table(TableName=name, **properties)
        for index, (size, is_emulated) in enumerate(SIZES):
            day = DAY + timedelta(days=index * 50)
            made = _rows(day, size)
            if is_emulated:
                row_bytes = _write(client, made)
                done = _measure(aws.url, aws.url, day)
            else:
                with RowServer(made) as server:
                    row_bytes = server.row_bytes
                    done = _measure(server.url, aws.url, day)
            measured.append(done | {"rows": size, "row_bytes": row_bytes, "source": "emulator" if is_emulated else "row server"})  # fmt: skip
            print(measured[-1], file=sys.stderr)
    found = {"measured": measured, "million": _million(measured[-2:])}
    publish("report", _table(found), page=REPOSITORY / "docs/reports.md")
    return found


def _measure(rows_url: str, url: str, day: date) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for step in ("roll-ups", "report"):
        command = [sys.executable, "-m", "benchmarks.report", step, rows_url, url, day.isoformat()]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY)
        found |= json.loads(done.stdout)
    return found


def _million(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """A million rows, by what each row beyond the smaller measurement took."""
    small, large = measured
    rows = large["rows"] - small["rows"]
    more = _MILLION - large["rows"]
    line = {name: float(large[name] + (large[name] - small[name]) / rows * more) for name in _FIGURES}
    return {"rows": _MILLION, "row_bytes": large["row_bytes"], "source": "extrapolated", **line}


def _table(found: dict[str, Any]) -> str:
    read_usd = float(REGIONS["ap-northeast-2"].read_units_per_million)
    rows = []
    for each in [*found["measured"], found["million"]]:
        # A row is read for its hour, and counted when its day is closed.
        units = 2 * each["rows"] * each["row_bytes"] / _UNIT_BYTES
        rows.append(
            (
                f"{each['rows']:,}",
                each["source"],
                f"{each['cpu_s']:.1f}",
                f"{each['peak_mb']:.0f}",
                f"{each['report_cpu_s']:.1f}",
                f"{each['report_peak_mb']:.0f}",
                f"{each['roll_up_kb']:,.0f}",
                f"{units:,.0f}",
                f"{units * read_usd / _MILLION:.4f}",
            )
        )
    return table(
        ("rows a day", "read from", "roll-ups: CPU, s", "peak, MB", "report: CPU, s", "peak, MB", "roll-ups, KB", "read units", "USD, Seoul"),
        rows,
    )  # fmt: skip


def _rows(day: date, size: int) -> Iterator[Row]:
    """A day of so many rows."""
    rng = random.Random(size)
    keys = [history.Key(key_id := new_key_id(), new_secret(key_id), app) for app in history.APPS]
    now_ms = day_end_ms(day, ZONE) + 86_400_000
    scale = 1.1 * size / (history.REQUESTS_A_DAY * sum(app.share for app in history.APPS))
    for row in islice(history.rows(keys, today=day, now_ms=now_ms, zone=ZONE, days=1, scale=scale), size):
        yield replace(row, end_user=f"user-{rng.randrange(_USERS):05}" if row.end_user else None)


def _item(row: Row) -> dict[str, Any]:
    return key_of(row.request_id, ZONE) | to_item(row)


def _write(client: Any, made: Iterator[Row]) -> float:
    """Puts them into the emulator; their mean size in bytes."""
    written = list(made)
    history.put_rows(client, "LedgerTable", written, ZONE)
    return sum(item_bytes(_item(row)) for row in written) / len(written)


class RowServer:
    """Answers a ledger reader's queries as DynamoDB does, from memory."""

    def __init__(self, made: Iterator[Row]) -> None:
        parts: dict[str, list[tuple[str, bytes]]] = {}
        total = count = 0
        for row in made:
            item = _item(row)
            total, count = total + item_bytes(item), count + 1
            kept = (row.request_id, json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode())
            parts.setdefault(item["day_shard"]["S"], []).append(kept)
        for rows in parts.values():
            rows.sort()
        self.row_bytes = total / count
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = outer.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
                pass

        self._parts = parts
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, asked: dict[str, Any]) -> bytes:
        """To a query for a part of a shard of a day."""
        values = {name: value["S"] for name, value in asked["ExpressionAttributeValues"].items()}
        rows = self._parts.get(values[":day_shard"], [])
        begin, end = (bisect_left(rows, (values[name],)) for name in (":from", ":to"))
        if start := asked.get("ExclusiveStartKey"):
            begin = bisect_left(rows, (start["request_id"]["S"] + "~",))
        # Pages of a count are as large as DynamoDB's: 1 MB.
        page = rows[begin : min(end, begin + asked.get("Limit", 2000))]
        items = b'"Items":[' + b",".join(item for _, item in page) + b"]," if asked.get("Select") != "COUNT" else b""
        last = b""
        if begin + len(page) < end:
            key = {"day_shard": {"S": values[":day_shard"]}, "request_id": {"S": page[-1][0]}}
            last = b',"LastEvaluatedKey":' + json.dumps(key).encode()
        return b"{" + items + f'"Count":{len(page)},"ScannedCount":{len(page)}'.encode() + last + b"}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


# ── In the measured processes ──────────────────────────────────────────────────────────────────────────────


def roll_up(usage: Usage, client: Any, day: date) -> dict[str, Any]:
    """The roll-ups of the day's hours from its rows, each when it is over, and then of the day."""
    cpu_s, began_s = time.process_time(), time.monotonic()
    usage.store.note("rolled", "hours", until_ms=day_start_ms(day, ZONE))
    for hour in (*hours_of(day, ZONE), Hour(day + timedelta(days=1), 0)):
        now_ms = hour.end_ms(ZONE) + 600_000
        usage.catch_up(now_ms=now_ms, closed_ms=now_ms - 300_000)
    figures = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.monotonic() - began_s, "peak_mb": _peak_mb()}
    pages = client.get_paginator("query").paginate(
        TableName="ReportTable",
        KeyConditionExpression="about = :about",
        ExpressionAttributeValues={":about": {"S": f"hours#{day}"}},
    )
    stored = [item for page in pages for item in page["Items"]]
    # Five weeks as busy as this day, for the report.
    (whole,) = usage.store.tallies(f"days#{month_of(day)}").values()
    for before in (day - timedelta(days=back) for back in range(1, HISTORY_DAYS + 1)):
        usage.store.put_tally(f"days#{month_of(before)}", f"{before.day:02}", whole)
    return {**figures, "roll_up_kb": sum(len(bytes(item["content"]["B"])) for item in stored) / 1024}


def report(usage: Usage, day: date) -> dict[str, Any]:
    """The report of the day, from roll-ups."""
    cpu_s, began_s = time.process_time(), time.monotonic()
    now_ms = day_end_ms(day, ZONE) + 600_000
    month = MonthView(f"{day:%Y-%m}", 0, 0, 0, 0, 0)
    accounts = Accounts({}, OrganisationView(500 * 10**12, 1, month))
    made = daily_report(usage, day, accounts, Terms(500 * 10**12, 1400), now_ms=now_ms)
    content = made.as_json()
    report_text.html(content, "ko")
    return {
        "report_cpu_s": time.process_time() - cpu_s,
        "report_wall_s": time.monotonic() - began_s,
        "report_peak_mb": _peak_mb(),
        "report_kb": (len(write_json(content)) + len(made.as_csv())) / 1024,
    }


def _peak_mb() -> float:
    """The most that this process has held. Not by getrusage, which also counts what its parent held when it forked."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _tables() -> dict[str, dict[str, Any]]:
    resources = yaml_parse(TEMPLATE.read_text(encoding="utf-8"))["Resources"]
    names = ("AttributeDefinitions", "KeySchema", "BillingMode")
    return {table: {name: resources[table]["Properties"][name] for name in names} for table in _TABLES}


def _client(url: str) -> Any:
    client = boto3.client(
        "dynamodb",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    take_items_plain(client)
    return client


def main(arguments: list[str]) -> int:
    """A measured process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("step", choices=("roll-ups", "report"))
    parser.add_argument("rows_url")
    parser.add_argument("url")
    parser.add_argument("day", type=date.fromisoformat)
    chosen = parser.parse_args(arguments)
    client = _client(chosen.url)
    reader = LedgerReader(_client(chosen.rows_url), "LedgerTable", ZONE)
    usage = Usage(reader, ReportStore(client, "ReportTable"), Closing(client, "MeterTable"))
    print(json.dumps(roll_up(usage, client, chosen.day) if chosen.step == "roll-ups" else report(usage, chosen.day)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
