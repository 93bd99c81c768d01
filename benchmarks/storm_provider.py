"""What storm and outage are made of: a provider in a process of its own, a catalog that names it, a client that asks."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.tutorial_client import Item
from local.emulator import kept_port
from local.processes import running_module
from local.template import REPOSITORY

ITEM = Item("서울의 가을을 소개해 주세요.", max_tokens=200)
_PATIENCE_S = 60.0
_START_S = 15.0


class Provider:
    """A simulated model in a process of its own."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = f"{url}/v1"
        self._root, self._http = url, http

    async def control(self, instructions: dict[str, Any]) -> None:
        """Makes it misbehave, and forgets what it counted."""
        (await self._http.delete(f"{self._root}/_control")).raise_for_status()
        (await self._http.post(f"{self._root}/_control", json=instructions)).raise_for_status()
        (await self._http.delete(f"{self._root}/_stats")).raise_for_status()

    async def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = (await self._http.get(f"{self._root}/_stats")).json()
        return stats


@asynccontextmanager
async def provider(*arguments: str) -> AsyncIterator[Provider]:
    """Started, and ready."""
    with tempfile.TemporaryDirectory(prefix="naru-storm-") as folder, kept_port() as port:
        async with (
            running_module(
                "local.simulated_model",
                *("--port", str(port), "--seed", "1", *arguments),
                environment={"PATH": os.environ.get("PATH", "")},
                log=Path(folder) / "model.log",
                path=[REPOSITORY],
            ),
            httpx.AsyncClient(trust_env=False) as http,
        ):
            running = Provider(f"http://127.0.0.1:{port}", http)
            async with asyncio.timeout(_START_S):
                while True:
                    try:
                        await running.stats()
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.05)
            yield running


def new_client(base_url: str, api_key: str) -> httpx.AsyncClient:
    """For one of many apps: a pool that all of them share would cost more than the gateway."""
    return httpx.AsyncClient(
        verify=False,  # noqa: S501 - no TLS here, and its setup is slow
        base_url=base_url,
        headers={"authorization": f"Bearer {api_key}"},
        timeout=_PATIENCE_S,
        trust_env=False,
    )


async def ask(http: httpx.AsyncClient) -> object:
    """What an app does that leaves everything to the gateway: one request, no retry."""
    messages = [{"role": "system", "content": ITEM.system}, {"role": "user", "content": ITEM.prompt}]
    body = {"model": "m", "messages": messages, "max_tokens": ITEM.max_tokens, "temperature": ITEM.temperature}
    answer = await http.post("/chat/completions", json=body)
    answer.raise_for_status()
    return answer.json()


def catalog(primary: str, fallback: str | None = None) -> str:
    """A model at one provider, and another one in its place at a second."""
    text = 'version = "storm"\nkrw_per_usd = 1400\n\n'
    for name, url in (("m", primary), ("n", fallback)):
        if url is None:
            continue
        text += f'[providers.{name}]\nbase_url = "{url}"\ndialect = "openai"\nsecret = "primary"\n\n[models.{name}]\n'
        text += 'owned_by = "simulated"\ncreated = 1764547200\ntokenizer = "hyperclova"\ndefault_output_tokens = 512\n'
        text += 'fallbacks = ["n"]\n' if name == "m" and fallback else ""
        text += f'deployments = [{{ name = "{name}", provider = "{name}", upstream_model = "hyperclova-x-omni", '
        text += "stream_usage = true, context_tokens = 128_000, max_output_tokens = 4_096, capabilities = [], "
        text += (
            'price = { currency = "USD", input_micro_per_mtok = 3_500_000, output_micro_per_mtok = 10_500_000 } }]\n\n'
        )
    return text
