"""What the benchmarks measure with: a wrong ruler makes every figure wrong."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.contestants import LITELLM, NARU
from benchmarks.figures import percentile, publish, table
from benchmarks.load import Connection, Target, WrongAnswerError, load
from benchmarks.overhead import goals
from benchmarks.processes import cpu_s, memory_mb, tree
from local import simulated_model


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (95, 95), (99, 99), (100, 100), (1, 1)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_table_is_put_into_its_place_and_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nafter <!-- two -->\n<!-- /two -->\n", encoding="utf-8")
    text = table(["", "ms"], [["Naru", "1.5"], ["somebody", "12.5"]])
    publish("one", text, page=page)
    assert page.read_text(encoding="utf-8") == (
        "before\n<!-- one -->\n"
        "|          |   ms |\n| -------- | ---: |\n| Naru     |  1.5 |\n| somebody | 12.5 |\n"
        "<!-- /one -->\nafter <!-- two -->\n<!-- /two -->\n"
    )
    assert text in capsys.readouterr().out
    with pytest.raises(ValueError, match="no place for 'three'"):
        publish("three", text, page=page)


def test_the_client_sees_first_token_gaps_and_end_of_a_stream() -> None:
    with simulated_model.run_in_thread() as model:
        target = Target(model.openai_url, "sk-any")
        request = target.request(stream=True, tokens=6, first_token_ms=60, token_ms=20)
        samples = asyncio.run(load(target, request, requests=3, concurrency=2, stream=True))
        assert len(samples) == 3
        for sample in samples:
            assert sample.tokens == 6
            assert sample.first_token_ms is not None
            assert 60 <= sample.first_token_ms < sample.total_ms
            assert sample.first_token_ms + sum(sample.gaps_ms) <= sample.total_ms
            assert sample.total_ms >= 160
        assert model.stats()["totals"]["completion_tokens"] == 18


def test_the_client_keeps_its_connection_and_reads_json() -> None:
    async def twice(target: Target) -> list[int]:
        connection = Connection(target)
        request = target.request(stream=False, tokens=4)
        samples = [await connection.ask(request) for _ in range(2)]
        connection.close()
        return [sample.tokens for sample in samples]

    with simulated_model.run_in_thread() as model:
        assert asyncio.run(twice(Target(model.openai_url, "sk-any"))) == [1, 1]


def test_a_refusal_is_no_measurement() -> None:
    with simulated_model.run_in_thread() as model:
        target = Target(f"{model.url}/elsewhere", "sk-any")
        with pytest.raises(ExceptionGroup) as failed:
            asyncio.run(load(target, target.request(stream=False, tokens=4), requests=1, concurrency=1, stream=False))
    assert failed.group_contains(WrongAnswerError, match="404")


def test_cpu_and_memory_are_those_of_the_processes_asked_for() -> None:
    busy = "import time\nuntil = time.process_time() + 0.2\nwhile time.process_time() < until: pass\nprint(1, flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        assert process.pid in tree(os.getpid())
        assert 0.2 <= cpu_s([process.pid]) < 1.0
        assert 2 < memory_mb(process.pid) < 100
        before_s = cpu_s([process.pid])
        spent_s, until_s = 0, time.process_time() + 0.1
        while time.process_time() < until_s:  # this process's work is not the other's
            spent_s += 1
        assert cpu_s([process.pid]) - before_s < 0.05
        process.communicate("\n")


def test_goals_take_the_emulator_out_and_say_so() -> None:
    naru = {"cpu_ms": {"own": 2.0}, "added_p50_ms": 9.0, "emulator_ms": 6.0, "emulator_ms_before_first_token": 4.0}
    litellm = {"cpu_ms": {"own": 20.0}, "added_p50_ms": 30.0}
    found = goals({"JSON, 1 at once, model 0 ms": {NARU: naru, LITELLM: litellm}})
    assert found["CPU per JSON request"] == {"ratio": 0.1, "goal": 0.125}
    assert found["added p50, JSON"] == {"ratio": 0.1, "gross": 0.3, "goal": 0.2}
