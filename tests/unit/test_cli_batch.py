"""``naru batch`` where there is no gateway, or one that answers by a script; with a real one it is in tests/e2e."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from naru import cli
from naru.cli import batch_client
from naru.cli.target import API_KEY, find_target


class Gateway:
    """Answers calls by a script, and remembers them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer: Callable[[str, str, bytes], tuple[int, Any]] = lambda *_: (404, {})
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def reply(self) -> None:
                content = self.rfile.read(int(self.headers.get("content-length") or 0))
                gateway.asked.append((self.command, self.path))
                status, value = gateway.answer(self.command, self.path, content)
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = reply  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Store:
    """Makes a gateway one that knows its files and batches."""

    def __init__(self, gateway: Gateway) -> None:
        self.files: list[str] = []
        self.batches: dict[str, str] = {}
        """Of its id, its input."""
        self.refuses_batches = False
        self.loses_answers = False
        self._made = {"file-": 0, "batch_": 0}
        gateway.answer = self.answer

    def forget(self) -> None:
        self.files.clear()
        self.batches.clear()

    def answer(self, method: str, path: str, content: bytes) -> tuple[int, Any]:
        match method, path.partition("?")[0].removeprefix("/v1/").partition("/"):
            case "POST", ("files", _, ""):
                self.files.append(self._new("file-"))
                return 200, {"id": self.files[-1]}
            case "POST", ("batches", _, ""):
                if self.refuses_batches:
                    return 503, {}
                asked = json.loads(content)
                batch_id = self._new("batch_")
                self.batches[batch_id] = asked["input_file_id"]
                return (502, b"") if self.loses_answers else (200, {"id": batch_id})
            case "GET", ("batches", _, ""):
                data = [{"id": batch_id, "input_file_id": file_id} for batch_id, file_id in self.batches.items()]
                return 200, {"data": data}
            case "GET", ("files" | "batches", _, name) if name in self.files or name in self.batches:
                return 200, {"id": name}
        return 404, {"error": {"message": "There is none.", "type": "x", "param": "id", "code": "not_found"}}

    def _new(self, prefix: str) -> str:
        self._made[prefix] += 1
        return f"{prefix}{self._made[prefix]}"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NARU_BASE_URL", f"{gateway.url}/v1")
    monkeypatch.setenv("NARU_API_KEY", "sk-naru-test")
    yield gateway
    gateway.close()


def batch_of(status: str, *, completed: int = 0, failed: int = 0, errors: Any = None) -> dict[str, Any]:
    names = ("in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    return {
        "id": "batch_1",
        "status": status,
        "model": "m",
        "request_counts": {"total": 3, "completed": completed, "failed": failed},
        "created_at": 1,
        **{f"{name}_at": None for name in names},
        "output_file_id": "file-out",
        "error_file_id": None,
        "usage": None,
        "errors": errors,
    }


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["submit"], "required"),
        (["submit", "no-such-file.jsonl"], "cannot be read"),
        (["submit", "empty.jsonl"], "0 bytes"),
        (["wait", "no-such-file.jsonl"], "neither the id of a batch"),
        (["submit", "in.jsonl", "--metadata", "x"], "NAME=TEXT"),
        (["status", "batch_1", "--base-url", "ftp://x"], "must begin with http"),
        (["dance"], "invalid choice"),
    ],
)
def test_misuse_is_one_line_and_status_2(gateway: Gateway, arguments: list[str], what: str, capsys: Any) -> None:
    Path("empty.jsonl").touch()
    Path("in.jsonl").write_text("{}\n")
    try:
        status = cli.main(["batch", *arguments])
    except SystemExit as left:
        status = int(left.code or 0)
    said = capsys.readouterr()
    assert status == 2
    assert what in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert gateway.asked == []


def test_without_a_gateway_it_says_which_variables_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("NARU_BASE_URL", "NARU_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["batch", "list"]) == 2
    assert "NARU_BASE_URL and NARU_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("NARU_API_KEY", "sk-naru-x")
    assert cli.main(["batch", "list"]) == 2
    assert "NARU_BASE_URL" in capsys.readouterr().err


def test_a_local_run_is_found_from_any_folder_of_it(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NARU_BASE_URL", "NARU_API_KEY"):
        monkeypatch.delenv(name)
    Path(".naru").mkdir()
    Path(".naru/local.json").write_text(json.dumps({"base_url": f"{gateway.url}/v1", "api_key": "sk-naru-local"}))
    inside = Path("a/b")
    inside.mkdir(parents=True)
    found = find_target(API_KEY, None, None, {}, inside.absolute())
    assert (found.base_url, found.key) == (f"{gateway.url}/v1", "sk-naru-local")


def test_a_submission_that_was_interrupted_goes_on_where_it_was(gateway: Gateway, capsys: Any) -> None:
    """The file was uploaded, the batch not yet made: it is not uploaded again, and there is one batch."""
    Path("in.jsonl").write_text("{}\n")
    store = Store(gateway)
    store.refuses_batches = True
    assert cli.main(["batch", "submit", "in.jsonl"]) == 1
    store.refuses_batches = False
    assert cli.main(["batch", "submit", "in.jsonl"]) == 0
    assert cli.main(["batch", "submit", "in.jsonl"]) == 0
    assert [path for method, path in gateway.asked if method == "POST"] == ["/v1/files", "/v1/batches", "/v1/batches"]
    assert capsys.readouterr().out == "batch_1\nbatch_1\n"
    # Another content is another batch.
    Path("in.jsonl").write_text("{ }\n")
    assert cli.main(["batch", "submit", "in.jsonl"]) == 0
    assert capsys.readouterr().out == "batch_2\n"


def test_a_batch_whose_making_was_not_answered_is_not_made_again(gateway: Gateway, capsys: Any) -> None:
    """The network failed, or Ctrl-C came, after the gateway had made it."""
    Path("in.jsonl").write_text("{}\n")
    store = Store(gateway)
    store.loses_answers = True
    assert cli.main(["batch", "submit", "in.jsonl"]) == 1
    store.loses_answers = False
    assert cli.main(["batch", "submit", "in.jsonl"]) == 0
    assert store.batches == {"batch_1": "file-1"}
    assert capsys.readouterr().out == "batch_1\n"


def test_a_file_whose_batch_is_forgotten_is_submitted_anew(gateway: Gateway, capsys: Any) -> None:
    """The gateway is another one at the same address, as after another 'make run', or 30 days are over."""
    Path("in.jsonl").write_text("{}\n")
    store = Store(gateway)
    assert cli.main(["batch", "submit", "in.jsonl"]) == 0
    store.forget()
    assert cli.main(["batch", "submit", "in.jsonl"]) == 0
    store.refuses_batches = True
    assert cli.main(["batch", "submit", "in.jsonl", "--again"]) == 1
    store.forget()
    store.refuses_batches = False
    assert cli.main(["batch", "submit", "in.jsonl"]) == 0
    assert store.batches == {"batch_3": "file-4"}
    assert capsys.readouterr().out == "batch_1\nbatch_2\nbatch_3\n"


def test_a_file_in_a_folder_that_may_only_be_read_can_be_submitted(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def read_only(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    Path("in.jsonl").write_text("{}\n")
    Store(gateway)
    monkeypatch.setattr(Path, "write_text", read_only)  # who is root may write anywhere
    assert cli.main(["batch", "submit", "in.jsonl"]) == 0
    said = capsys.readouterr()
    assert said.out == "batch_1\n"
    assert "in.jsonl.naru-batch cannot be written (Permission denied)" in said.err


def test_a_large_file_goes_to_s3_and_a_broken_upload_is_repeated(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_client, "_FORM_BYTES", 10)
    monkeypatch.setattr("naru.cli.batch_client.time.sleep", lambda _: None)
    Path("in.jsonl").write_bytes(b"x" * 1000)
    puts: list[bytes] = []

    def answer(method: str, path: str, content: bytes) -> tuple[int, Any]:
        if method == "PUT":
            puts.append(content)
            return (503, b"") if len(puts) == 1 else (200, b"")
        if path == "/v1/uploads/presigned":
            assert json.loads(content) == {"filename": "in.jsonl", "bytes": 1000, "purpose": "batch"}
            return 200, {"id": "file-9", "url": f"{gateway.url}/bucket/file-9"}
        return 200, {"id": "file-9" if path == "/v1/uploads/file-9/complete" else "batch_9"}

    gateway.answer = answer
    assert cli.main(["batch", "submit", "in.jsonl"]) == 0
    assert puts == [b"x" * 1000] * 2
    assert json.loads(Path("in.jsonl.naru-batch").read_text())["batch_id"] == "batch_9"


def test_waiting_shows_progress_and_says_how_it_ended(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("naru.cli.batch.time.sleep", lambda _: None)
    states = [
        batch_of("validating"),
        batch_of("in_progress", completed=1),
        batch_of("completed", completed=2, failed=1),
    ]
    gateway.answer = lambda *_: (200, states.pop(0))
    assert cli.main(["batch", "wait", "batch_1"]) == 0
    said = capsys.readouterr().err
    assert "in_progress: 1 of 3 requests" in said
    assert "2 answered, 1 failed" in said
    error = {"code": "invalid_json_line", "line": 7, "message": "not JSON", "param": None}
    gateway.answer = lambda *_: (200, batch_of("failed", errors={"object": "list", "data": [error]}))
    assert cli.main(["batch", "wait", "batch_1"]) == 1
    assert "line 7: not JSON" in capsys.readouterr().err


def test_a_gateway_that_fails_for_a_moment_does_not_end_the_watch(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("naru.cli.batch.time.sleep", lambda _: None)
    refusal = {"error": {"message": "Try again shortly.", "type": "server_error", "param": None, "code": None}}
    answers = [(503, refusal), (200, batch_of("in_progress")), (429, {}), (502, b""), (200, batch_of("completed"))]
    gateway.answer = lambda *_: answers.pop(0)
    assert cli.main(["batch", "wait", "batch_1"]) == 0
    gateway.answer = lambda *_: (503, refusal)
    assert cli.main(["batch", "wait", "batch_1"]) == 1
    assert capsys.readouterr().err.endswith("naru: Try again shortly.\n")


def test_ctrl_c_leaves_the_batch_running(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("naru.cli.batch.time.sleep", interrupted)
    gateway.answer = lambda *_: (200, batch_of("in_progress"))
    assert cli.main(["batch", "wait", "batch_1"]) == 130
    assert "naru batch wait batch_1" in capsys.readouterr().err
    assert ("POST", "/v1/batches/batch_1/cancel") not in gateway.asked


def test_results_are_written_whole_or_not_at_all(gateway: Gateway, capsys: Any) -> None:
    gateway.answer = lambda _, path, __: (200, batch_of("completed") if "batches" in path else b'{"a":1}\n')
    assert cli.main(["batch", "results", "batch_1", "--output", "out.jsonl", "--errors", "err.jsonl"]) == 0
    assert Path("out.jsonl").read_bytes() == b'{"a":1}\n'
    assert not Path("err.jsonl").exists()
    assert not list(Path().glob("*.part"))
    assert cli.main(["batch", "results", "batch_1"]) == 0
    assert capsys.readouterr().out == '{"a":1}\n'
    gateway.answer = lambda *_: (200, batch_of("in_progress"))
    assert cli.main(["batch", "results", "batch_1"]) == 1
    assert "naru batch wait" in capsys.readouterr().err


def test_what_the_gateway_refuses_is_said_in_its_words(gateway: Gateway, capsys: Any) -> None:
    error = {
        "message": "No batch found with id 'batch_1'.",
        "type": "invalid_request_error",
        "param": "id",
        "code": None,
    }
    gateway.answer = lambda *_: (404, {"error": error})
    assert cli.main(["batch", "status", "batch_1"]) == 1
    assert capsys.readouterr().err == "naru: No batch found with id 'batch_1'.\n"
