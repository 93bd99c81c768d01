"""The command ``naru`` where there is no gateway, or one that misbehaves; with a real one it is in tests/e2e."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from naru import cli
from naru.cli import output
from naru.cli.output import MisuseError
from naru.cli.target import ADMIN_KEY, find_target
from naru.keys import new_key_id, new_secret
from tests.waiting import PATIENCE_S, eventually

SECRET = new_secret(new_key_id())


@contextmanager
def serving(status: int, content: bytes, *, delay: threading.Event | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A server with one answer; its base URL, and what it was asked."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            asked.append((self.command, self.path, self.headers["authorization"], body.decode()))
            if delay is not None:
                delay.wait(PATIENCE_S)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        if delay is not None:
            delay.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No gateway is configured, and no local run is near."""
    for name in ("NARU_BASE_URL", "NARU_ADMIN_KEY", "NARU_DEBUG", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)


def test_help_is_quick() -> None:
    """It imports nothing that a command needs only when it works."""
    code = (
        "import sys; from naru.cli import main\n"
        "try: main(['keys', 'create', '--help'])\n"
        "except SystemExit: print({'httpx', 'pydantic', 'boto3', 'asyncio'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"
    assert "--budget-usd" in done.stdout


# ── Where ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_not_sent_to_a_gateway_that_it_was_not_given_with(tmp_path: Path) -> None:
    file = tmp_path / ".naru" / "local.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"base_url": "http://127.0.0.1:8000/v1", "admin_key": "sk-naru-local"}))
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert find_target(ADMIN_KEY, None, None, {}, below).key == "sk-naru-local"
    given = find_target(ADMIN_KEY, "https://gateway/v1/", None, {"NARU_ADMIN_KEY": "sk-naru-env"}, below)
    assert (given.base_url, given.key) == ("https://gateway/v1", "sk-naru-env")
    for half in ({"NARU_BASE_URL": "https://gateway/v1"}, {"NARU_ADMIN_KEY": "sk-naru-env"}):
        with pytest.raises(MisuseError):
            find_target(ADMIN_KEY, None, None, half, below)


@pytest.mark.parametrize(
    "url",
    [
        "https://.execute-api.ap-northeast-2.amazonaws.com/v1",
        "http://a..b/v1",
        "http://[::1/v1",
        "http://h:port/v1",
        "http:///v1",
    ],
)
@pytest.mark.parametrize("command", [("keys", "list"), ("batch", "list")])
def test_an_address_without_a_host_is_misuse_in_one_line(
    url: str, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("NARU_BASE_URL", url), ("NARU_ADMIN_KEY", SECRET), ("NARU_API_KEY", SECRET)):
        monkeypatch.setenv(name, value)
    assert run(*command) == 2
    assert (
        capsys.readouterr().err
        == f"naru: the base URL {url!r} names no host and port that can be; it is the stack's output BaseUrl\n"
    )


def test_without_a_gateway_it_says_how_to_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("keys", "list") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("naru: which gateway? Set NARU_BASE_URL")
    assert said.err.count("\n") == 1


# ── What is sent and shown ─────────────────────────────────────────────────────────────────────────────────


def key_object(**more: Any) -> dict[str, Any]:
    return {
        "object": "api_key",
        "id": "key_0123456789ab",
        "name": "모바일 앱",
        "status": "active",
        "enabled": True,
        "created_at": 1795338000,
        "expires_at": None,
        "revoked_at": None,
        "old_key_works_until": None,
        "models": None,
        "tags": {},
        "may_route": False,
        "budget_usd": None,
        "month": "2026-11",
        "spent_usd": 0,
        "reserved_usd": 0,
        "available_usd": None,
        "budget_resets_at": 1796050800,
        "requests_in_flight": 0,
        "rpm": None,
        "tpm": None,
        "max_parallel": None,
        "user_budget_usd": None,
        "user_rpm": None,
        "shards": 1,
        **more,
    }


def test_amounts_are_sent_and_shown_digit_by_digit(capsys: pytest.CaptureFixture[str]) -> None:
    content = json.dumps(key_object()).replace('"budget_usd": null', '"budget_usd": 123456789.123456789012', 1)
    with serving(200, content.encode()) as (url, asked):
        where = ("--base-url", url, "--admin-key", SECRET)
        assert (
            run("keys", "update", "key_0123456789ab", "--budget-usd", "123456789.123456789012", "--json", *where) == 0
        )
    assert asked == [
        ("PATCH", "/v1/admin/keys/key_0123456789ab", f"Bearer {SECRET}", '{"budget_usd":123456789.123456789012}')
    ]
    assert '"budget_usd":123456789.123456789012,' in capsys.readouterr().out


def test_only_the_key_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(201, json.dumps(key_object(key=SECRET)).encode()) as (url, asked):
        assert run("keys", "create", "앱", "--rpm", "none", "--base-url", url, "--admin-key", "k") == 0
    assert json.loads(asked[0][3]) == {"name": "앱", "rpm": None}
    said = capsys.readouterr()
    assert said.out == f"{SECRET}\n"
    assert "key_0123456789ab" in said.err


@pytest.mark.parametrize(
    ("zone", "shown"), [(None, "2026-12-01 00:00 KST"), ("America/New_York", "2026-11-30 10:00 EST"), ("", "2026-12-01 00:00 KST")]
)  # fmt: skip
def test_times_are_the_businesss_wherever_the_command_runs(
    monkeypatch: pytest.MonkeyPatch, zone: str | None, shown: str
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NARU_TIME_ZONE", raising=False)
    if zone is not None:
        monkeypatch.setenv("NARU_TIME_ZONE", zone)
    assert output.moment(1796050800) == shown
    assert output.moment(None) == "never"


def test_a_time_zone_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NARU_TIME_ZONE", "Seoul")
    with serving(200, json.dumps(key_object()).encode()) as (url, _):
        assert run("keys", "show", "key_0123456789ab", "--base-url", url, "--admin-key", "k") == 2
    assert "NARU_TIME_ZONE is 'Seoul'" in capsys.readouterr().err


def test_columns_stand_below_each_other_in_korean_too(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("NAME", "RPM"), [("모바일 앱", "60"), ("app", "5")])
    assert capsys.readouterr().out == "NAME       RPM\n모바일 앱  60\napp        5\n"


def test_a_terminal_without_korean_shows_what_it_can() -> None:
    with serving(200, json.dumps(key_object(tags={"팀": "앱"})).encode()) as (url, _):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "naru.cli",
                "keys",
                "show",
                "key_0123456789ab",
                "--base-url",
                url,
                "--admin-key",
                "k",
            ],
            capture_output=True,
            check=False,
            env={"PATH": os.environ["PATH"], "PYTHONIOENCODING": "ascii"},
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\ubaa8" in done.stdout


# ── What goes wrong ────────────────────────────────────────────────────────────────────────────────────────

ERROR = {"error": {"message": "Two\nlines.", "type": "invalid_request_error", "param": None, "code": "x"}}


def test_who_wants_no_output_is_not_told_of_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a shell's >&- makes of a process: Python has no stdout then."""
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", None)
        assert run("cost") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (400, json.dumps(ERROR).encode(), "naru: Two lines."),
        (401, json.dumps(ERROR).encode(), "(the admin key is from --base-url and --admin-key"),
        (200, b"<html>hello</html>", "the base URL ends in /v1"),
        (200, b"[]", "no gateway of Naru's"),
        (502, b"", "answers 502"),
        (500, b'{"error": "text"}', "answers 500"),
        (302, b"", "answers 302"),
        (200, b"\xff\xfe", "no gateway of Naru's"),
        (200, b"{}", "unexpected KeyError"),
    ],
)
def test_an_answer_that_makes_no_sense_is_one_line(
    capsys: pytest.CaptureFixture[str], status: int, content: bytes, says: str
) -> None:
    with serving(status, content) as (url, _):
        assert run("budget", "show", "--base-url", url, "--admin-key", SECRET) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert (said.err.count("\n"), SECRET in said.err) == (1, False)


def test_a_gateway_that_is_down_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        assert run("budget", "show", "--base-url", url, "--admin-key", "k") == 1
    assert capsys.readouterr().err.startswith(f"naru: cannot reach {url} (")


def test_ctrl_c_is_one_line() -> None:
    waiting = threading.Event()
    # A shell's background job, and with it all of a test run there, ignores the signal.
    start = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('naru.cli', run_name='__main__', alter_sys=True)"
    )
    with serving(200, b"{}", delay=waiting) as (url, asked):
        process = subprocess.Popen(
            [sys.executable, "-c", start, "budget", "show", "--base-url", url, "--admin-key", "k"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually(lambda: bool(asked))
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, *said) == (130, "", "naru: interrupted\n")


def test_a_missing_boto3_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert run("admin", "init") == 1
    assert capsys.readouterr().err == "naru: this command needs boto3: pip install boto3\n"


def test_an_unknown_region_or_stranger_to_aws_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert run("admin", "init") == 2
    assert capsys.readouterr().err == "naru: which region? --region, or AWS_REGION\n"
    assert run("admin", "init", "--region", "ap-northeast-2") == 1
    assert "aws sso login" in capsys.readouterr().err
