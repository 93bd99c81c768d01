"""``python -m benchmarks report``: what a busy day costs to report: time, memory and read units, by its rows.

The rows lie in the emulator's DynamoDB and are read, parsed and folded by the code of the function, in a process of its
own whose processor time and memory are measured. What AWS adds is the waiting for its answers, eight at a time.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import boto3
from samtranslator.yaml_helper import yaml_parse

from benchmarks.figures import publish, table
from benchmarks.units import item_bytes
from local import history
from local.emulator import CREDENTIALS, REGION, emulator
from local.gateway import in_thread
from local.template import REPOSITORY, TEMPLATE
from naru.accounts import Accounts
from naru.amounts import write_json
from naru.api_keys import MonthView, OrganisationView
from naru.aws_prices import REGIONS
from naru.closing import Closing
from naru.keys import new_key_id, new_secret
from naru.ledger import key_of, to_item
from naru.ledger_reader import LedgerReader
from naru.periods import day_end_ms
from naru.report import Terms, daily_report
from naru.report_store import ReportStore
from naru.usage import Usage

ZONE = ZoneInfo("Asia/Seoul")
DAY = date(2026, 11, 19)
SIZES = (10_000, 100_000)
_MILLION = 10**6
_PAGE_BYTES = 1 << 20
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
        for index, size in enumerate(SIZES):
            day = DAY + timedelta(days=index)
            row_bytes = _write(client, day, size)
            command = [sys.executable, "-m", "benchmarks.report", "--fold", aws.url, day.isoformat()]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
            measured.append(json.loads(done.stdout) | {"rows": size, "row_bytes": row_bytes})
    found = {"measured": measured, "million": _million(measured)}
    publish("report", _table(found), page=REPOSITORY / "docs/reports.md")
    return found


def _million(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """A million rows, by what each row beyond the smaller measurement took."""
    small, large = measured
    rows = large["rows"] - small["rows"]
    more = _MILLION - large["rows"]

    def line(name: str) -> float:
        return float(large[name] + (large[name] - small[name]) / rows * more)

    pages = _MILLION * large["row_bytes"] / _PAGE_BYTES
    return {
        "cpu_s": line("cpu_s"),
        "peak_mb": line("peak_mb"),
        "pages": pages,
        "read_units": _MILLION * large["row_bytes"] / _UNIT_BYTES,
        "roll_up_kb": line("roll_up_kb"),
    }


def _table(found: dict[str, Any]) -> str:
    million, read_usd = found["million"], float(REGIONS["ap-northeast-2"].read_units_per_million)
    rows = [
        (f"{each['rows']:,}", f"{each['cpu_s']:.1f}", f"{each['peak_mb']:.0f}", f"{each['roll_up_kb']:.0f}", f"{each['rows'] * each['row_bytes'] / _UNIT_BYTES:,.0f}", f"{each['rows'] * each['row_bytes'] / _UNIT_BYTES * read_usd / _MILLION:.4f}")
        for each in found["measured"]
    ]  # fmt: skip
    rows.append(
        ("1,000,000 (extrapolated)", f"{million['cpu_s']:.0f}", f"{million['peak_mb']:.0f}", f"{million['roll_up_kb']:.0f}", f"{million['read_units']:,.0f}", f"{million['read_units'] * read_usd / _MILLION:.4f}")
    )  # fmt: skip
    return table(("rows a day", "CPU, s", "peak memory, MB", "roll-ups, KB", "read units", "USD, Seoul"), rows)


def _write(client: Any, day: date, size: int) -> float:
    """A day of so many rows; their mean size."""
    rng = random.Random(size)
    keys = [history.Key(key_id := new_key_id(), new_secret(key_id), app) for app in history.APPS]
    now_ms = day_end_ms(day, ZONE) + 86_400_000
    scale = 1.1 * size / (history.REQUESTS_A_DAY * sum(app.share for app in history.APPS))
    made = history.rows(keys, today=day, now_ms=now_ms, zone=ZONE, days=1, scale=scale)
    total = 0

    def counted() -> Any:
        nonlocal total
        for count, row in enumerate(made):
            if count == size:
                return
            user = f"user-{rng.randrange(_USERS):05}" if row.end_user else None
            named = replace(row, end_user=user)
            total += item_bytes(key_of(named.request_id, ZONE) | to_item(named))
            yield named

    history.put_rows(client, "LedgerTable", counted(), ZONE)
    return total / size


def fold(url: str, day: date) -> dict[str, Any]:
    """In the measured process: the day's roll-ups from its rows, then its report."""
    client = _client(url)
    usage = Usage(LedgerReader(client, "LedgerTable", ZONE), ReportStore(client, "ReportTable"), Closing(client, "MeterTable"))  # fmt: skip
    began_s, cpu_s = time.monotonic(), time.process_time()
    usage.roll_up_day(day)
    now_ms = day_end_ms(day, ZONE) + 3_600_000
    month = MonthView(f"{day:%Y-%m}", 0, 0, 0, 0, 0)
    accounts = Accounts({}, OrganisationView(500 * 10**12, 1, month))
    report = daily_report(usage, day, accounts, Terms(500 * 10**12, 1400), now_ms=now_ms)
    content = write_json(report.as_json())
    stored = client.query(
        TableName="ReportTable",
        KeyConditionExpression="about = :about",
        ExpressionAttributeValues={":about": {"S": f"hours#{day}"}},
    )["Items"]
    return {
        "cpu_s": time.process_time() - cpu_s,
        "wall_s": time.monotonic() - began_s,
        "peak_mb": _peak_mb(),
        "roll_up_kb": sum(len(bytes(item["content"]["B"])) for item in stored) / 1024,
        "report_kb": len(content) / 1024,
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
    return boto3.client(
        "dynamodb",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


def main(arguments: list[str]) -> int:
    """The measured process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("--fold", nargs=2, metavar=("URL", "DAY"), required=True)
    chosen = parser.parse_args(arguments)
    print(json.dumps(fold(chosen.fold[0], date.fromisoformat(chosen.fold[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
