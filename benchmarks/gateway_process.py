"""``python -m benchmarks.gateway_process MODEL_URL FOLDER PROCESSES``: the gateway as a process of its own.

Prints one line of JSON when it answers, and runs until SIGTERM or the end of its standard input.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from local.gateway import gateway
from local.processes import stay_on_this_machine
from naru.meter_state import Limits


async def _run(model_url: str, folder: Path, processes: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with gateway(
        folder=folder,
        provider_base_urls={"holysheep": f"{model_url}/v1", "clovastudio": f"{model_url}/clova/v1/openai"},
        provider_keys={"holysheep": "sim-holysheep", "clovastudio": "sim-clovastudio"},
        max_processes=processes,
    ) as running:
        # With limits per minute, so that the key's meter does all of its work, and none that is reached.
        limits = Limits(budget_pico_usd=10**15, rpm=1_000_000, tpm=10**9, max_parallel=1000)
        key = await asyncio.to_thread(running.stack.add_api_key, "benchmark", limits)
        said = {
            "base_url": running.base_url,
            "api_key": key,
            "emulator_url": running.stack.emulator.url,
            "emulator_pid": running.stack.emulator.process.pid,
            "tables": {name: running.stack.outputs[name] for name in ("LedgerTable", "MeterTable")},
            "chat_folder": str(running.stack.functions["ChatFunction"].folder),
            "chat_log": str(running.logs / "ChatFunction.log"),
        }
        print(json.dumps(said), flush=True)
        await stop.wait()


if __name__ == "__main__":
    stay_on_this_machine()
    asyncio.run(_run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
