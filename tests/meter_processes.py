"""Real processes that share one table of meters: started once, told what to do, killed when a test says so."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any
from zoneinfo import ZoneInfo

from naru.accounting import Account, Subject
from naru.errors import NaruError
from naru.ledger import Ledger
from naru.meter import Admission, Meters
from naru.pricing import Usage
from naru.request_ids import arrived_at_ms, new_request_id
from naru.sweeper import Sweeper
from tests.accounts import a_pico_dollar_a_token
from tests.emulated_tables import Tables

MODEL = "hyperclova-x-omni"
SEOUL = ZoneInfo("Asia/Seoul")


@dataclass(frozen=True)
class Ask:
    """One request that a process is to admit."""

    secret: str
    now_ms: int
    worst_pico_usd: int
    tokens: int = 1
    at_ms: int | None = None
    """When it arrived, if not now."""


@dataclass
class _Process:
    """What a process holds."""

    tables: Tables
    meters: Meters
    ledger: Ledger
    client: Any
    admissions: list[Admission] = field(default_factory=list)

    async def admit(self, asks: Sequence[Ask]) -> list[str]:
        """All of them at once; ``admitted``, or why not. What is admitted is held."""
        return list(await asyncio.gather(*map(self._admit, asks)))

    async def _admit(self, ask: Ask) -> str:
        try:
            admission = await self.meters.admit(
                f"Bearer {ask.secret}",
                request_id=new_request_id(at_ms=ask.now_ms if ask.at_ms is None else ask.at_ms),
                now_ms=ask.now_ms,
                model=MODEL,
                worst_pico_usd=ask.worst_pico_usd,
                tokens=ask.tokens,
            )
        except NaruError as error:
            return str(error.code)
        self.admissions.append(admission)
        return "admitted"

    async def settle(self, cost_pico_usd: int) -> None:
        """All that is held, at once."""
        held, self.admissions = self.admissions, []
        await asyncio.gather(*(self.meters.settle(each, cost_pico_usd=cost_pico_usd, tokens=None) for each in held))

    async def close(self, cost_pico_usd: int) -> None:
        """All that is held, at once, as the use case does it: the row, then the meters."""
        held, self.admissions = self.admissions, []
        await asyncio.gather(*(self._close(each, cost_pico_usd) for each in held))

    async def _close(self, admission: Admission, cost_pico_usd: int) -> None:
        lease = admission.leases[0][1]
        subject = Subject(lease.request_id, None, None, stream=False, model=MODEL, catalog_version="1")
        account = Account(subject, admission, self.ledger, self.meters, started_s=0.0)
        usage = Usage(prompt_tokens=0, completion_tokens=cost_pico_usd)
        await account.close(a_pico_dollar_a_token(lease.worst_pico_usd), outcome="completed", usage=usage)

    async def sweep(self, now_ms: int) -> int:
        """How many requests this sweep ended."""
        swept = await Sweeper(self.client, "MeterTable", self.meters, self.ledger).sweep(now_ms=now_ms)
        return swept.settled + swept.unknown + swept.released

    async def held_ms(self) -> list[int]:
        """When the requests that are held arrived."""
        return [arrived_at_ms(admission.leases[0][1].request_id) for admission in self.admissions]


def _run(orders: Connection, tables: Tables) -> None:
    client, calls = tables.client(), tables.calls()
    loop = asyncio.new_event_loop()
    process: _Process | None = None
    while True:
        try:
            name, arguments = orders.recv()
        except EOFError:
            return
        if name == "forget":
            meters = Meters(calls, "MeterTable", SEOUL, organisation_budget_pico_usd=arguments[0])
            process = _Process(tables, meters, Ledger(calls, "LedgerTable", SEOUL), client)
            orders.send(None)
        else:
            orders.send(loop.run_until_complete(getattr(process, name)(*arguments)))


class MeterProcess:
    """A process with a memory of its own, as Lambda's execution environments have one."""

    def __init__(self, tables: Tables) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "botocore.endpoint"])  # imported once, not by each
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, tables), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, name: str, *arguments: Any) -> None:
        """Let it do something; `hear` is the result."""
        self._pipe.send((name, arguments))

    def hear(self) -> Any:
        if not self._pipe.poll(60):
            raise TimeoutError("the process says nothing")
        return self._pipe.recv()

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def all_at_once(processes: Sequence[MeterProcess], name: str, *arguments: Any) -> list[Any]:
    """Each of them does it at the same time; what each of them says."""
    for process in processes:
        process.tell(name, *arguments)
    return [process.hear() for process in processes]
