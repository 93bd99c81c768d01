"""Whatever a gateway, or what answers in its place, puts into names, ids and errors: the command shows it and no more."""

from __future__ import annotations

import argparse
import ast
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from naru import cli
from naru.accounts import Accounts
from naru.amounts import read_json, write_json
from naru.api_keys import MonthView, OrganisationView
from naru.cli import batch, ledger, output
from naru.cli.ledger import ReRating
from naru.plain_text import is_unseen
from naru.report import Terms, daily_report
from tests.usage_world import SEOUL, LedgerModel, any_row, at_ms, row, usage_of

HOSTILE = (
    "x\x1b[2J\x1b]8;;http://evil.example\x1b\\y\x07\b\b\r\nnaru: all is well\x7f\x9b31m\u202eabc\u202c\u200b\u2028\ufeff"
    "\u3164\U000e0001[red]bold[/red]"
)
HARMLESS = "x"
CLI = Path(cli.__file__).parent
PATHS = ("--base-url", "--api-key", "--admin-key")


class Server:
    """Answers by a function, any method."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str], tuple[int, bytes]] = lambda *_: (404, b"{}")
        server = self

        class Handler(BaseHTTPRequestHandler):
            def reply(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                status, body = server.answer(self.command, self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = reply  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


# With credentials of another test's the doctor would look at an account, and wait for a network that is not there.
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NARU_DEBUG", *CREDENTIALS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NARU_BASE_URL", running.url)
    monkeypatch.setenv("NARU_ADMIN_KEY", "sk-naru-admin")
    monkeypatch.setenv("NARU_API_KEY", "sk-naru-app")
    monkeypatch.setattr(batch, "_POLL_S", 0.0)
    monkeypatch.setattr(batch, "_LONGEST_POLL_S", 0.0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.jsonl").write_text("{}\n")
    return running


# ── What is answered ───────────────────────────────────────────────────────────────────────────────────────


def key(text: str) -> dict[str, Any]:
    return {
        "id": text, "name": text, "key": text, "status": text, "created_at": 1, "expires_at": 2, "revoked_at": 3,
        "old_key_works_until": 4, "models": [text, text], "budget_usd": 5, "spent_usd": 1, "reserved_usd": 0,
        "available_usd": 4, "requests_in_flight": 1, "month": text, "budget_resets_at": 5, "rpm": 1, "tpm": 2,
        "max_parallel": 3, "user_budget_usd": 1, "user_rpm": 1, "tags": {text: text}, "may_route": True, "shards": 2,
    }  # fmt: skip


def a_batch(text: str, *, status: str | None = None, **fields: Any) -> dict[str, Any]:
    times = ("in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": text, "status": text if status is None else status, "model": text, "endpoint": text, "created_at": 1,
        "request_counts": {"total": 3, "completed": 2, "failed": 1}, "output_file_id": "file-out",
        "error_file_id": "file-out", "usage": None, "errors": None, "metadata": {text: text}, "input_file_id": text,
        **{f"{name}_at": 1 for name in times},
    } | fields  # fmt: skip


def a_report(text: str) -> dict[str, Any]:
    import random

    rng = random.Random(1)
    rows = [any_row(at_ms("2026-11-21 10:00:00") + second * 1000, rng) for second in range(40)]
    rows += [row(at_ms("2026-11-21 11:00:00"), key_id=text, end_user=text, model_served=text, deployment=text, outcome="failed", error_code=text)]  # fmt: skip
    accounts = Accounts({}, OrganisationView(10**15, 1, MonthView("2026-11", 0, 0, 0, 0, 0)))
    now_ms = at_ms("2026-11-22 12:00:00")
    report = daily_report(usage_of(LedgerModel(SEOUL, rows)), date(2026, 11, 21), accounts, Terms(10**14, 1400), now_ms=now_ms)  # fmt: skip
    made: dict[str, Any] = read_json(write_json(report.as_json()))
    return made | {"period": text}


def line(text: str) -> str:
    return json.dumps({"custom_id": text, "response": {"body": {"model": text}}}, ensure_ascii=False) + "\n"


def good(text: str) -> dict[tuple[str, str], Any]:
    """The answers of a gateway all of whose texts are this one."""
    listing = {"object": "list", "has_more": False, "last_id": text}
    failed = {"data": [{"line": 1, "message": text, "code": text, "param": text}, {"line": None, "message": text}]}
    return {
        ("POST", "admin/keys"): key(text),
        ("GET", "admin/keys"): {**listing, "data": [key(text), key(text)]},
        ("GET", "admin/keys/key_0123456789ab"): key(text),
        ("PATCH", "admin/keys/key_0123456789ab"): key(text),
        ("DELETE", "admin/keys/key_0123456789ab"): key(text),
        ("POST", "admin/keys/key_0123456789ab/rotate"): key(text),
        ("GET", "admin/organization"): key(text),
        ("PATCH", "admin/organization"): key(text),
        ("POST", "admin/alerts/test"): {"object": text, "sent": True},
        ("GET", "health"): {"status": "ok"},
        ("POST", "files"): {"id": "file-in"},
        ("GET", "files/file-in"): {"id": "file-in"},
        ("GET", "files/file-out/content"): line(text),
        ("POST", "batches"): a_batch(text, id="batch_1" + text.replace("/", "").replace("\\", "")[:1]),
        ("GET", "batches"): {**listing, "data": [a_batch(text), a_batch(text)]},
        ("GET", "batches/batch_1x"): a_batch(text, status="failed", errors=failed),
        ("GET", "batches/batch_shown"): a_batch(text),
        ("GET", "batches/batch_done"): a_batch(text, status="completed"),
        ("GET", "batches/batch_failed"): a_batch(text, status="failed", errors=failed),
        ("POST", "batches/batch_done/cancel"): a_batch(text),
        ("GET", "usage/reports/yesterday"): a_report(text),
    }


def serve(server: Server, answers: Mapping[tuple[str, str], Any]) -> None:
    def answer(method: str, path: str) -> tuple[int, bytes]:
        found = answers.get((method, path.partition("?")[0].removeprefix("/v1/")))
        if found is None:
            return 404, b'{"error": {"message": "There is none.", "code": "not_found"}}'
        return 200, (found if isinstance(found, str) else write_json(found)).encode("utf-8", "surrogatepass")

    server.answer = answer


COMMANDS = [
    "keys create app", "keys list", "keys list --all", "keys show key_0123456789ab", "keys update key_0123456789ab --rpm 5", "keys rotate key_0123456789ab",
    "keys revoke key_0123456789ab --yes", "budget show", "budget set 5", "alerts test", "report", "report --language ko", "doctor",
    "report --format csv", "report --format html", "report --format json", "report --json", "batch submit input.jsonl",
    "batch submit input.jsonl --wait", "batch submit input.jsonl --again", "batch list", "batch status batch_shown",
    "batch wait batch_done", "batch wait batch_failed", "batch cancel batch_done", "batch results batch_shown",
    "batch results batch_done", "batch results batch_done --errors errors.jsonl", "cost",
]  # fmt: skip
FAILING = {"doctor", "batch submit input.jsonl --wait", "batch wait batch_failed", "batch results batch_shown"}
JSON = [
    "keys create app", "keys list", "keys show key_0123456789ab", "keys rotate key_0123456789ab", "budget show", "alerts test", "batch list",
    "batch status batch_shown", "report", "doctor", "cost",
]  # fmt: skip


def run(command: str) -> int:
    try:
        return cli.main(command.split())
    except SystemExit as stopped:
        return int(stopped.code or 0)


def unseen(text: str) -> list[str]:
    """What is in an output and cannot be seen; line breaks are the command's own."""
    return [letter for letter in text if is_unseen(letter) and letter != "\n"]


@pytest.mark.parametrize("command", COMMANDS)
def test_names_ids_and_states_are_shown(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str) -> None:  # fmt: skip
    """On a terminal: nothing moves, and there are as many lines as there are of harmless names."""
    said = {}
    for text in (HARMLESS, HOSTILE):
        serve(server, good(text))
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        Path("input.jsonl.naru-batch").unlink(missing_ok=True)
        status = run(command)
        printed = capsys.readouterr()
        said[text] = (status, printed.out.count("\n"), printed.err.count("\n"))
        assert unseen(printed.out + printed.err) == []
    if command not in FAILING:
        assert said[HARMLESS][0] == 0
    if command not in {"report --format csv", "report --format html"}:  # the document itself has more lines
        assert said[HOSTILE] == said[HARMLESS]


@pytest.mark.parametrize("command", JSON)
def test_json_stays_json_and_says_the_same(server: Server, capsys: pytest.CaptureFixture[str], command: str) -> None:
    answers = good(HOSTILE)
    serve(server, answers)
    run(f"{command} --json")
    printed = capsys.readouterr()
    value = read_json(printed.out)
    assert unseen(printed.out + printed.err) == []
    if command not in {"doctor", "cost"}:
        assert HOSTILE in _texts(value)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _texts(part)]


@pytest.mark.parametrize("command", [each for each in COMMANDS if not each.startswith("cost")])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, write_json({"error": {"message": HOSTILE, "code": HOSTILE, "param": HOSTILE}}).encode()),
        (401, write_json({"error": {"message": HOSTILE}}).encode()),
        (404, write_json({"error": {"message": HOSTILE, "code": "not_found"}}).encode()),
        (200, HOSTILE.encode()),
        (200, write_json({HOSTILE: HOSTILE}).encode()),
        (302, HOSTILE.encode()),
    ],
)
def test_errors_are_shown_in_a_line(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, status: int, body: bytes
) -> None:  # fmt: skip
    server.answer = lambda *_: (status, body)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    run(command)
    printed = capsys.readouterr()
    assert unseen(printed.out + printed.err) == []
    assert not [said for said in printed.err.splitlines() if said.startswith("naru: all is well")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["keys", "show", HOSTILE],
        ["keys", "list", "--base-url", f"http://{HOSTILE}/v1", "--admin-key", "sk"],
        ["keys", "list", "--base-url", "http://127.0.0.1:9/v1", "--admin-key", HOSTILE],
        ["keys", "create", "app", "--budget-usd", HOSTILE],
        ["keys", "create", "app", "--tag", HOSTILE],
        ["batch", "status", HOSTILE],
        ["batch", "submit", HOSTILE],
        ["batch", "results", "batch_done", "--output", f"/nowhere/{HOSTILE}"],
        ["report", "--date", HOSTILE],
        ["report", "--format", "csv", "--output", f"/nowhere/{HOSTILE}"],
        ["cost", "--model", HOSTILE],
        ["cost", "--catalog", HOSTILE],
        [HOSTILE],
        ["keys", "list", HOSTILE],
        ["keys", "list", f"--{HOSTILE}"],
        ["providers", "set", HOSTILE],
        ["ledger", "re-rate", "--month", HOSTILE, "--catalog", HOSTILE],
    ],
    ids=lambda arguments: " ".join(arguments).replace(HOSTILE, "HOSTILE"),
)
def test_what_was_typed_or_pasted_is_shown_too(server: Server, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:  # fmt: skip
    serve(server, good(HOSTILE))
    try:
        status = cli.main(arguments)
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    printed = capsys.readouterr()
    assert status in {1, 2}
    assert unseen(printed.out + printed.err) == []
    assert printed.err.count("\n") == 1


def test_the_environment_is_shown_too(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    serve(server, good(HARMLESS))
    for name, value in (("NARU_TIME_ZONE", HOSTILE), ("NARU_BASE_URL", HOSTILE)):
        monkeypatch.setenv(name, value)
        assert run("keys show key_0123456789ab") == 2
        printed = capsys.readouterr()
        assert unseen(printed.out + printed.err) == []


def test_results_are_written_byte_by_byte(server: Server, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:  # fmt: skip
    """Into a file and into a pipe; on a terminal the same values with escapes."""
    serve(server, good(HOSTILE))
    content = line(HOSTILE).encode()
    assert run("batch results batch_done --output out.jsonl --errors errors.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "errors.jsonl").read_bytes() == content
    capsysbinary.readouterr()
    assert run("batch results batch_done") == 0
    assert capsysbinary.readouterr().out == content


def test_results_on_a_terminal_have_the_same_values(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    serve(server, good(HOSTILE))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert run("batch results batch_done") == 0
    printed = capsys.readouterr().out
    assert unseen(printed) == []
    assert json.loads(printed) == json.loads(line(HOSTILE))


def test_a_report_is_written_byte_by_byte(server: Server, tmp_path: Path) -> None:
    serve(server, {("GET", "usage/reports/yesterday"): f"a,{HOSTILE}\n"})
    assert run("report --format html --output report.html") == 0
    assert (tmp_path / "report.html").read_bytes().decode() == f"a,{HOSTILE}\n"


def test_a_bar_that_is_drawn_shows_names_too(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """With rich, which has sequences of its own and a markup for them."""
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "400")
    states = iter([a_batch(HOSTILE), a_batch(HOSTILE), a_batch(HARMLESS, status="completed")])
    server.answer = lambda *_: (200, write_json(next(states)).encode())
    assert run("batch wait batch_done") == 0
    drawn = capsys.readouterr().err
    assert "[red]bold[/red]" in drawn
    for raw in ("\x1b]8", "\x07", "\b", "\x7f", "\x9b", "\u202e", "\u200b", "\ufeff", "\x1b[2J\x1b]"):
        assert raw not in drawn


def test_models_of_the_ledger_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    result = ReRating()
    hostile = row(at_ms("2026-11-21 10:00:00"), model_served=HOSTILE, deployment=HOSTILE)
    for charge in ledger.re_rate(hostile, {}):
        result.add(charge)
    from naru import catalog

    ledger._show(argparse.Namespace(json=False), date(2026, 11, 1), catalog.load(), result)
    printed = capsys.readouterr()
    assert unseen(printed.out) == []
    assert printed.out.count("\n") == 3


def test_nothing_prints_past_the_one_place() -> None:
    """ruff forbids print in the other modules (T201); this finds the ways around it."""
    ways = {"write", "writelines", "buffer", "print"}
    found = []
    for path in CLI.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and node.id == "print":
                found.append(path.name)
            if isinstance(node, ast.Attribute) and node.attr in ways and ast.unparse(node.value) in {"sys.stdout", "sys.stderr", "sys.stdout.buffer", "sys.stderr.buffer"}:  # fmt: skip
                found.append(path.name)
    assert set(found) == {Path(output.__file__).name}
