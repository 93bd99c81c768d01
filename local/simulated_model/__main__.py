"""`python -m local.simulated_model`: the model as a process. SIGTERM and SIGINT stop it cleanly."""

from __future__ import annotations

import argparse
import asyncio
import signal

from local.simulated_model import Capacity, Config, Latency, simulated_model


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m local.simulated_model", description="A fake LLM provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=0, help="of latencies and of rules with a probability")
    parser.add_argument("--first-token-ms", type=float, default=0.0, help="fixed, or the mean if a p95 is given")
    parser.add_argument("--first-token-p95-ms", type=float, help="lognormal with this p95")
    parser.add_argument("--token-ms", type=float, default=0.0, help="between two tokens; likewise")
    parser.add_argument("--token-p95-ms", type=float)
    parser.add_argument("--answer-tokens", type=int, help="length of text answers; else the request decides, 40 to 120")
    parser.add_argument("--max-concurrent", type=int, help="more at once are answered 429")
    parser.add_argument("--requests-per-minute", type=int, help="more are answered 429")
    parser.add_argument("--retry-after-s", type=float, help="sent with those 429")
    parser.add_argument("--models", nargs="+", help="the only model names that are accepted")
    parser.add_argument("--cache-prefixes", action="store_true", help="bill repeated prompt prefixes as cached")
    parser.add_argument("--native-clova-errors", action="store_true", help="error bodies of CLOVA Studio's own API")
    return parser.parse_args()


async def _run(arguments: argparse.Namespace) -> None:
    config = Config(
        seed=arguments.seed,
        latency=Latency(
            first_token_ms=arguments.first_token_ms,
            token_ms=arguments.token_ms,
            first_token_p95_ms=arguments.first_token_p95_ms,
            token_p95_ms=arguments.token_p95_ms,
        ),
        capacity=Capacity(
            max_concurrent=arguments.max_concurrent,
            requests_per_minute=arguments.requests_per_minute,
            retry_after_s=arguments.retry_after_s,
        ),
        models=frozenset(arguments.models) if arguments.models else None,
        answer_tokens=arguments.answer_tokens,
        cache_prefixes=arguments.cache_prefixes,
        clova_errors="native" if arguments.native_clova_errors else "openai",
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with simulated_model(config, arguments.host, arguments.port) as model:
        print(f"simulated model: {model.url}", flush=True)  # the one line that a starter waits for
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_run(_arguments()))
