"""The command ``naru``: keys and budgets through the admin API, and what needs AWS credentials.

The gateway and the admin key come from ``--base-url`` and ``--admin-key``, else from NARU_BASE_URL and NARU_ADMIN_KEY,
else from ``.naru/local.json`` of a local run, here or in a folder above. They are taken as a pair: a key is not sent to
a gateway that it was not given with.

Exit status: 0 done, 1 refused or failed, 2 misuse, 130 interrupted. A failure is one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NoReturn

from naru.amounts import to_pico_usd
from naru.cli.output import CommandError, note
from naru.plain_text import shown

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know Korean
    try:
        parsed = _parser().parse_args(arguments)
        parsed.run(parsed)
        if sys.stdout is not None:  # closed by whoever wants no output (>&-)
            sys.stdout.flush()
    except CommandError as error:
        return _say(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:
        # Whoever reads has enough (| head). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # the last resort: a person gets a line, a developer the traceback
        if os.environ.get("NARU_DEBUG"):
            raise
        return _say(f"unexpected {type(error).__name__}: {error}. NARU_DEBUG=1 shows where.", 1)
    return 0


def _say(message: str, exit_status: int) -> int:
    note(f"naru: {' '.join(message.split())}")
    return exit_status


# ── Arguments ──────────────────────────────────────────────────────────────────────────────────────────────


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, shown(f"{self.prog}: {message}. See {self.prog} --help.") + "\n")


def _parser() -> argparse.ArgumentParser:
    root = _Parser(
        prog="naru",
        description="Keys, budgets and costs of a Naru gateway.",
        epilog="The gateway: --base-url and --admin-key, or NARU_BASE_URL and NARU_ADMIN_KEY, or .naru/local.json of 'make run'. "
        "Times are of Asia/Seoul, or of NARU_TIME_ZONE.",
        allow_abbrev=False,
    )
    groups = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_keys(_group(groups, "keys", "API keys: create, list, show, update, rotate, revoke"))
    _add_budget(_group(groups, "budget", "the organisation's monthly budget"))
    _add_aws(
        _group(groups, "admin", "the admin key of a deployed gateway"),
        _group(groups, "providers", "keys of the providers of a deployed gateway"),
    )
    _add_batch(_group(groups, "batch", "batches: submit, list, status, wait, cancel, results, redrive"))
    _add_ledger(_group(groups, "ledger", "questions to the rows of a deployed gateway"))
    _add_cost(groups)
    _add_report(groups)
    _add_alerts(_group(groups, "alerts", "messages to the operator"))
    _add_doctor(groups)
    return root


Groups = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


def _group(groups: Groups[_Parser], name: str, about: str) -> Groups[_Parser]:
    parser = groups.add_parser(name, help=about, description=about, allow_abbrev=False)
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _command(groups: Groups[_Parser], name: str, about: str, run: Callable[[argparse.Namespace], None]) -> _Parser:
    parser = groups.add_parser(name, help=about, description=about, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _of_api(parser: _Parser) -> _Parser:
    """Options of what goes through the admin API."""
    parser.add_argument("--json", action="store_true", help="print the gateway's answer, for programs")
    parser.add_argument("--base-url", metavar="URL", help="the gateway, with /v1 at its end")
    parser.add_argument(
        "--admin-key", metavar="KEY", help="better given as NARU_ADMIN_KEY: others may read a command line"
    )
    return parser


def _add_keys(groups: Groups[_Parser]) -> None:
    def lazily(name: str) -> Callable[[argparse.Namespace], None]:
        def run(arguments: argparse.Namespace) -> None:
            from naru.cli import keys

            getattr(keys, name)(arguments)

        return run

    create = _of_api(_command(groups, "create", "make a key and print it, this once", lazily("create")))
    create.add_argument("name", metavar="NAME", help="what it is for, such as 'mobile app'")
    _add_limits(create)
    create.add_argument(
        "--shards", type=int, metavar="N", help="1 to 16; more than 1 for some 100 requests at once and up"
    )
    listing = _of_api(_command(groups, "list", "all keys, newest first", lazily("list_all")))
    listing.add_argument("--all", action="store_true", help="also the revoked ones")
    show = _of_api(_command(groups, "show", "one key and what it has spent", lazily("show")))
    update = _of_api(_command(groups, "update", "change a key; what it has spent stays spent", lazily("update")))
    rotate = _of_api(
        _command(groups, "rotate", "make a new secret for a key and print it, this once", lazily("rotate"))
    )
    rotate.add_argument("--overlap", type=_duration_s, default=3600, metavar="TIME", help="how long the old one still works: 90s, 15m, 1h, 7d, 0 (default: 1h)")  # fmt: skip
    revoke = _of_api(_command(groups, "revoke", "end a key at once and for good", lazily("revoke")))
    revoke.add_argument("--yes", action="store_true", help="do not ask")
    for parser in (show, update, rotate, revoke):
        parser.add_argument("key_id", metavar="KEY_ID", help="key_… (not the key itself)")
    update.add_argument("--name", metavar="NAME")
    _add_limits(update)
    switch = update.add_mutually_exclusive_group()
    switch.add_argument(
        "--disable", dest="enabled", action="store_false", default=None, help="refuse its requests for now"
    )
    switch.add_argument("--enable", dest="enabled", action="store_true", default=None, help="let them in again")


def _add_limits(parser: _Parser) -> None:
    parser.add_argument("--budget-usd", type=_usd, metavar="USD", help="to spend in a month; 'none' for no limit")
    parser.add_argument("--rpm", type=_limit, metavar="N", help="requests per minute; 'none'")
    parser.add_argument("--tpm", type=_limit, metavar="N", help="tokens per minute; 'none'")
    parser.add_argument("--max-parallel", type=_limit, metavar="N", help="requests at once; 'none'")
    parser.add_argument(
        "--model", action="append", dest="models", metavar="MODEL", help="the key may use it; may be repeated; 'all'"
    )
    parser.add_argument(
        "--expires", type=_expiry, metavar="WHEN", help="30d, 12h, 2027-01-01T00:00:00+09:00, or 'never'"
    )
    parser.add_argument("--may-route", action=argparse.BooleanOptionalAction, default=None, help="may its requests choose their deployment? no")  # fmt: skip
    parser.add_argument("--tag", action="append", type=_tag, dest="tags", metavar="NAME=TEXT", help="may be repeated; all tags are set anew; 'none'")  # fmt: skip
    parser.add_argument(
        "--user-budget-usd", type=_usd, metavar="USD", help="to spend for each end user in a month; 'none'"
    )
    parser.add_argument("--user-rpm", type=_limit, metavar="N", help="requests per minute of each end user; 'none'")


def _add_budget(groups: Groups[_Parser]) -> None:
    def lazily(name: str) -> Callable[[argparse.Namespace], None]:
        def run(arguments: argparse.Namespace) -> None:
            from naru.cli import keys

            getattr(keys, name)(arguments)

        return run

    _of_api(_command(groups, "show", "what all keys together may spend, and have spent", lazily("show_budget")))
    change = _of_api(_command(groups, "set", "change it; what was spent this month stays spent", lazily("set_budget")))
    change.add_argument("budget_usd", type=_usd, metavar="USD", help="to spend in a month; 'none' for no limit")
    change.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help="spread its meter; for some 100 requests at once and up; can only grow",
    )


def _add_batch(groups: Groups[_Parser]) -> None:
    def lazily(name: str) -> Callable[[argparse.Namespace], None]:
        def run(arguments: argparse.Namespace) -> None:
            from naru.cli import batch

            getattr(batch, name)(arguments)

        return run

    def redrive(arguments: argparse.Namespace) -> None:
        from naru.cli import redrive

        redrive.run(arguments)

    submit = _command(groups, "submit", "upload a file of requests and make a batch of it", lazily("submit"))
    submit.add_argument(
        "file", metavar="FILE", help="JSONL: custom_id, method, url and body in each line; up to 200 MB"
    )
    submit.add_argument("--wait", action="store_true", help="and watch it to its end")
    submit.add_argument("--again", action="store_true", help="also if this file was submitted before")
    submit.add_argument("--metadata", action="append", type=_metadata, metavar="NAME=TEXT", help="may be repeated")
    listing = _command(groups, "list", "the newest batches of the key", lazily("list_all"))
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="1 to 100 (default: 20)")
    status = _command(groups, "status", "where a batch stands", lazily("status"))
    watch = _command(groups, "wait", "watch a batch to its end; Ctrl-C leaves it running", lazily("wait"))
    stop = _command(groups, "cancel", "let no request of it begin any more", lazily("cancel"))
    fetch = _command(groups, "results", "fetch what has come of it", lazily("results"))
    fetch.add_argument("--output", metavar="FILE", help="else to stdout")
    fetch.add_argument("--errors", metavar="FILE", help="the requests that failed, and why")
    for parser in (status, watch, stop, fetch):
        parser.add_argument("batch", metavar="BATCH", help="batch_…, or the file that was submitted")
    for parser in (listing, status):
        parser.add_argument("--json", action="store_true", help="print the gateway's answer, for programs")
    for parser in (submit, listing, status, watch, stop, fetch):
        parser.add_argument("--base-url", metavar="URL", help="the gateway, with /v1 at its end")
        parser.add_argument(
            "--api-key", metavar="KEY", help="better given as NARU_API_KEY: others may read a command line"
        )
    again = _command(groups, "redrive", "give dead letters to the workers again, with AWS credentials", redrive)
    again.add_argument("--stack-name", default="naru", metavar="NAME", help="in CloudFormation (default: naru)")
    again.add_argument("--region", metavar="REGION", help="else AWS's usual: AWS_REGION, the profile")


def _add_cost(groups: Groups[_Parser]) -> None:
    def run(arguments: argparse.Namespace) -> None:
        from naru.cli import cost

        cost.show_cost(arguments)

    about = "what a month of requests costs on AWS, next to containers and to the tokens"
    cost = _command(groups, "cost", about, run)
    cost.add_argument("--requests", type=_amount, default=10**6, metavar="N", help="in a month, such as 250000 or 1e6 (default: 1e6)")  # fmt: skip
    cost.add_argument("--latency", type=_seconds, default=Decimal(3), metavar="S", help="seconds of an average answer (default: 3)")  # fmt: skip
    cost.add_argument("--tokens", type=_in_and_out, default=(500, 300), metavar="IN/OUT", help="of an average request (default: 500/300)")  # fmt: skip
    cost.add_argument("--model", default="hyperclova-x-omni", metavar="MODEL", help="whose tokens (default: hyperclova-x-omni)")  # fmt: skip
    cost.add_argument("--catalog", type=Path, metavar="FILE", help="a catalog of your own")
    cost.add_argument("--memory", type=int, choices=(256, 512, 1024, 1769), default=512, help="MB of the function (default: 512)")  # fmt: skip
    cost.add_argument("--peak", type=_seconds, default=Decimal(5), metavar="X", help="the busiest moment, in averages (default: 5)")  # fmt: skip
    cost.add_argument("--json", action="store_true", help="for programs")


def _add_report(groups: Groups[_Parser]) -> None:
    def run(arguments: argparse.Namespace) -> None:
        from naru.cli import report

        report.show_report(arguments)

    about = "what a day or a month has cost: by model, key, tag, deployment and end user"
    report = _of_api(_command(groups, "report", about, run))
    when = report.add_mutually_exclusive_group()
    when.add_argument("--date", type=_day, metavar="YYYY-MM-DD", help="a business day, also today (default: yesterday)")
    when.add_argument("--month", type=_month, metavar="YYYY-MM", help="a business month, also this one")
    report.add_argument("--format", choices=("table", "json", "csv", "html"), default="table", help="default: table")
    report.add_argument("--language", choices=("ko", "en"), help="of table and html (default: the gateway's)")
    report.add_argument("--output", metavar="FILE", type=Path, help="write it there")


def _add_alerts(groups: Groups[_Parser]) -> None:
    def run(arguments: argparse.Namespace) -> None:
        from naru.cli import report

        report.test_alerts(arguments)

    _of_api(_command(groups, "test", "send a test message to all who hear the alerts", run))


def _add_aws(admin: Groups[_Parser], providers: Groups[_Parser]) -> None:
    def init(arguments: argparse.Namespace) -> None:
        from naru.cli import aws

        aws.init_admin(arguments)

    def set_key(arguments: argparse.Namespace) -> None:
        from naru.cli import aws

        aws.set_provider_key(arguments)

    first = _command(admin, "init", "make the admin key, with AWS credentials, and print it, this once", init)
    first.add_argument("--name", default="admin", metavar="NAME", help="whose it is")
    first.add_argument("--replace", action="store_true", help="make another one, and switch off those there are")
    put = _command(providers, "set", "store a provider's key, read from stdin or asked for", set_key)
    put.add_argument("provider", metavar="NAME", help="the catalog's 'secret', such as holysheep or clovastudio")
    for parser in (first, put):
        parser.add_argument("--stack-name", default="naru", metavar="NAME", help="in CloudFormation (default: naru)")
        parser.add_argument("--region", metavar="REGION", help="else AWS's usual: AWS_REGION, the profile")


def _of_aws(parser: _Parser) -> _Parser:
    """Options of what needs AWS credentials."""
    parser.add_argument("--stack-name", default="naru", metavar="NAME", help="in CloudFormation (default: naru)")
    parser.add_argument("--region", metavar="REGION", help="else AWS's usual: AWS_REGION, the profile")
    return parser


def _add_ledger(groups: Groups[_Parser]) -> None:
    def re_rate(arguments: argparse.Namespace) -> None:
        from naru.cli import ledger

        ledger.re_rate_month(arguments)

    about = "what a month would have cost at other prices; changes nothing"
    parser = _of_aws(_command(groups, "re-rate", about, re_rate))
    parser.add_argument("--month", required=True, type=_month, metavar="YYYY-MM", help="a business month")
    parser.add_argument("--catalog", required=True, metavar="FILE", help="a catalog with the other prices")
    parser.add_argument("--output", metavar="FILE", help="the CSV of what differs (default: re-rate-YYYY-MM.csv)")
    parser.add_argument("--dry-run", action="store_true", help="show the sums and write no file")
    parser.add_argument("--json", action="store_true", help="print the sums for programs")


def _add_doctor(groups: Groups[_Parser]) -> None:
    def examine(arguments: argparse.Namespace) -> None:
        from naru.cli import doctor

        doctor.run(arguments)

    about = "looks at a gateway and says what is wrong; with AWS credentials, at its resources too"
    _of_aws(_of_api(_command(groups, "doctor", about, examine)))


# ── Values ─────────────────────────────────────────────────────────────────────────────────────────────────

NONE = "none"
"""What is sent as null; an option that is not given is None."""


def _usd(text: str) -> Decimal | str:
    if text.lower() == NONE:
        return NONE
    try:
        amount = Decimal(text)
        to_pico_usd(amount)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of US dollars, such as 50 or 0.25") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return amount


def _limit(text: str) -> int | str:
    if text.lower() == NONE:
        return NONE
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; 'none' is no limit")
    return int(text)


def _amount(text: str) -> int:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number != int(number) or not 1 <= number <= 10**12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of requests, such as 250000 or 1e6")
    return int(number)


def _seconds(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", text) or Decimal(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 3 or 0.8")
    return Decimal(text)


def _in_and_out(text: str) -> tuple[int, int]:
    if not (match := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not IN/OUT, such as 500/300")
    return int(match[1]), int(match[2])


def _duration_s(text: str) -> int:
    if text == "0":
        return 0
    if not (match := re.fullmatch(r"([0-9]{1,9})([smhd])", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time, such as 90s, 15m, 1h or 7d")
    return int(match[1]) * _UNITS_S[match[2]]


def _expiry(text: str) -> int | str:
    if text.lower() in {NONE, "never"}:
        return NONE
    if re.fullmatch(r"[0-9]+[smhd]", text):
        return int(time.time()) + _duration_s(text)
    return text


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day, such as 2026-11-22") from None


def _month(text: str) -> date:
    try:
        return date.fromisoformat(f"{text}-01")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a month, such as 2026-11") from None


def _metadata(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TEXT")
    return name, value


def _tag(text: str) -> tuple[str, str] | str:
    if text.lower() == NONE:
        return NONE
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TEXT")
    return name, value
