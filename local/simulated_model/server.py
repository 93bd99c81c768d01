"""The model's HTTP side: routing, admission, and the life of one request."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from local.http_server import BodyTooLarge, Request, Response
from local.simulated_model import answers, dialects, text, tokens
from local.simulated_model.billing import Accounts, BillRow, Stats
from local.simulated_model.config import Capacity, Config, Latency
from local.simulated_model.delivery import Delivery, Order
from local.simulated_model.dialects import Face, RefusedError
from local.simulated_model.faults import BadInstructionError, Fault
from local.simulated_model.gate import Gate
from local.simulated_model.instructions import (
    Directives,
    Faults,
    Occasion,
    Rule,
    parse_directives,
    parse_json,
)

_BASE_PATHS: Mapping[str, Face] = {"/v1": "openai", "/clova/v1/openai": "clova"}
_BODY_LIMIT_BYTES = 32 * 1024 * 1024
_REMEMBERED_PREFIXES = 10_000
_JSON = ("content-type", "application/json")


class SimulatedModel:
    """The state of one running model. `url` has no trailing slash; the faces are below it.

    The methods are those of `/_stats` and `/_control`, for a caller on the same event loop.
    """

    def __init__(self, config: Config, url: str = "") -> None:
        self.config = config
        self.url = url
        self.accounts = Accounts(config.prices)
        self.faults = Faults(config.seed)
        self.latency = config.latency
        self.gate = Gate(config.capacity)
        self._prefixes: OrderedDict[tuple[str, str, int], None] = OrderedDict()
        self._serial = 0

    @property
    def openai_url(self) -> str:
        """Return the base URL of the OpenAI face."""
        return f"{self.url}/v1"

    @property
    def clova_url(self) -> str:
        """Return the base URL of the CLOVA Studio face."""
        return f"{self.url}/clova/v1/openai"

    def stats(self) -> Stats:
        """Return what has been billed and counted."""
        return self.accounts.stats()

    def reset_stats(self) -> None:
        """Forget what has been billed and counted."""
        self.accounts.reset()

    async def idle(self) -> None:
        """Wait until no request is in flight: clients that left have been noticed, and billed."""
        await self.accounts.idle.wait()

    def control(self, instructions: Mapping[str, Any]) -> None:
        """Add `rules`, replace `latency` or `capacity`, or start the random numbers at `seed`.

        Raises BadInstructionError, and then nothing has changed.
        """
        unknown = set(instructions) - {"rules", "latency", "capacity", "seed"}
        if unknown:
            raise BadInstructionError(
                f"unknown: {', '.join(sorted(unknown))}; there are rules, latency, capacity and seed"
            )
        rules = [Rule.of(rule) for rule in instructions.get("rules") or []]
        try:
            latency = Latency(**instructions["latency"]) if "latency" in instructions else self.latency
            capacity = Capacity(**instructions["capacity"]) if "capacity" in instructions else self.gate.capacity
        except (TypeError, ValueError) as error:
            raise BadInstructionError(str(error)) from error
        if "seed" in instructions:
            self.faults.rng.seed(instructions["seed"])
        self.faults.rules += rules
        self.latency, self.gate.capacity = latency, capacity

    def clear_control(self) -> None:
        """Drop all rules, and go back to the latency and capacity of the configuration."""
        self.faults.clear()
        self.latency, self.gate.capacity = self.config.latency, self.config.capacity

    def next_id(self) -> str:
        """Return an id for one answer."""
        self._serial += 1
        return f"chatcmpl-{text.digest(self.config.seed, self.url, self._serial):024x}"

    def cached_tokens(self, key: str, body: dict[str, Any]) -> int:
        """Return the tokens of the longest prompt prefix seen before, and remember those of this prompt."""
        if not self.config.cache_prefixes:
            return 0
        total, prefix, cached = 0, text.digest(body.get("tools")), 0
        for message in body["messages"]:
            total += tokens.message_tokens(message)
            prefix = text.digest(prefix, message)
            entry = (key, body["model"], prefix)
            if entry in self._prefixes and total >= self.config.cache_min_tokens:
                cached = total
            self._prefixes[entry] = None
            self._prefixes.move_to_end(entry)
        while len(self._prefixes) > _REMEMBERED_PREFIXES:
            self._prefixes.popitem(last=False)
        return cached

    async def handle(self, request: Request, response: Response) -> None:
        """Answer one HTTP request: the handler for `local.http_server.serve`."""
        administration: dict[tuple[str, str], Callable[[], Stats | None]] = {
            ("GET", "/_stats"): self.stats,
            ("DELETE", "/_stats"): self.reset_stats,
            ("DELETE", "/_control"): self.clear_control,
        }
        base, _, name = request.path.partition("/chat/")
        action = administration.get((request.method, request.path))
        if action is not None:
            await _send_json(response, 200, action() or {})
        elif (request.method, request.path) == ("POST", "/_control"):
            await self._control(request, response)
        elif request.path.removesuffix("/models") in _BASE_PATHS and request.path.endswith("/models"):
            await self._models(request, response, _BASE_PATHS[request.path.removesuffix("/models")])
        elif base in _BASE_PATHS and name == "completions" and request.method == "POST":
            await _Exchange(self, _BASE_PATHS[base], request, response).run()
        else:
            refusal = RefusedError(404, f"there is no {request.method} {request.path}")
            await _send_json(response, 404, dialects.error_object(refusal, "openai"))

    async def _control(self, request: Request, response: Response) -> None:
        try:
            instructions = parse_json(await request.body(_BODY_LIMIT_BYTES))
            if not isinstance(instructions, dict):
                raise BadInstructionError("an object is wanted")
            self.control(instructions)
        except BadInstructionError as error:
            await _send_json(response, 400, dialects.error_object(RefusedError(400, str(error)), "openai"))
        else:
            await _send_json(response, 200, {})

    async def _models(self, request: Request, response: Response, face: Face) -> None:
        try:
            authenticate(self.config, request)
        except RefusedError as refusal:
            await _send_json(response, refusal.status, dialects.error_object(refusal, face))
            return
        names = sorted(self.config.models or self.config.prices)
        data = [{"id": name, "object": "model", "created": 1_735_689_600, "owned_by": "simulated"} for name in names]
        await _send_json(response, 200, {"object": "list", "data": data})


async def _send_json(response: Response, status: int, value: object) -> None:
    await response.send(status, [_JSON], tokens.compact_json(value).encode())


def authenticate(config: Config, request: Request) -> str:
    """Return the Bearer key of a request. Raises RefusedError."""
    scheme, _, key = (request.header("authorization") or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise RefusedError(401, "You didn't provide an API key", "missing_api_key")
    if key == "revoked" or (config.keys is not None and key not in config.keys):
        raise RefusedError(401, "Incorrect API key provided", "invalid_api_key")
    return key


class _Exchange:
    """One chat completion, from its arrival to its end."""

    def __init__(self, model: SimulatedModel, face: Face, request: Request, response: Response) -> None:
        self.model = model
        self.face = face
        self.request = request
        self.response = response
        self._leaving: list[Callable[[], None]] = [model.accounts.leave]

    async def run(self) -> None:
        self.model.accounts.enter()
        try:
            await self._run()
        except RefusedError as refusal:
            await self.refuse(refusal, self._error_kind())
        finally:
            self.leave()
            if not self.response.started:
                self.model.accounts.answered(None)

    def leave(self) -> None:
        """Give back the place at the gate, if one was taken, and be counted out; again does nothing."""
        while self._leaving:
            self._leaving.pop()()

    async def _run(self) -> None:
        config = self.model.config
        try:
            raw = await self.request.body(_BODY_LIMIT_BYTES)
        except BodyTooLarge as error:
            raise RefusedError(413, "the body is too large") from error
        key = authenticate(config, self.request)
        body = dialects.parse(raw)
        dialects.check(self.face, body)
        if config.models is not None and body["model"] not in config.models:
            raise RefusedError(404, f"The model `{body['model']}` does not exist", "model_not_found", param="model")
        spoken = answers.last_user_text(body)
        try:
            directives = parse_directives(spoken)
        except BadInstructionError as error:
            raise RefusedError(400, str(error), "invalid_sim_directive") from error
        faults = self.model.faults.choose(Occasion(body["model"], self.face, key, spoken), directives)
        if await self._fails(faults, body):
            return
        prompt = tokens.prompt_tokens(body)
        if prompt > dialects.context_tokens(self.face, body["model"], config.context_tokens):
            raise _context_length(f"the prompt has {prompt} tokens")
        await self.model.gate.enter()
        self._leaving.append(self.model.gate.leave)
        await self._answer(key, body, directives, faults, prompt)

    async def _fails(self, faults: Mapping[str, Fault], body: dict[str, Any]) -> bool:
        """Carry out a fault that leaves no answer. Raises RefusedError for those that refuse."""
        if fault := faults.get("context_length"):
            raise _context_length(fault.message or "too long")
        if fault := faults.get("content_filter"):
            message = (
                fault.message or "The response was filtered due to the prompt triggering content management policy."
            )
            raise RefusedError(400, message, "content_filter", "40005", param="prompt")
        if (fault := faults.get("refuse_prefill")) and body["messages"][-1]["role"] == "assistant":
            message = fault.message or "This model does not support assistant message prefill"
            raise RefusedError(400, message, "invalid_request_error", "40001", param="messages")
        fault = faults.get("status")
        if fault is None:
            return False
        await asyncio.sleep(fault.after_ms / 1000)
        message = fault.message or f"The server answered {fault.status} because it was asked to"
        codes = {429: "rate_limit_exceeded", 401: "invalid_api_key", 404: "model_not_found"}
        wait = {"retry-after": fault.retry_after, "retry-after-ms": fault.retry_after_ms}
        headers = [(name, value) for name, value in wait.items() if value is not None] + [*fault.headers.items()]
        code = fault.code or codes.get(fault.status)
        refusal = RefusedError(fault.status, message, code, fault.code, headers=tuple(headers), payload=fault.json)
        await self.refuse(refusal, fault.body or self._error_kind(), as_asked=True)
        return True

    def _error_kind(self) -> str:
        return "native" if self.face == "clova" and self.model.config.clova_errors == "native" else self.face

    async def refuse(self, refusal: RefusedError, kind: str, *, as_asked: bool = False) -> None:
        """Send an error answer; CLOVA Studio's 429 says when its window opens, and sends no Retry-After of its own."""
        content_type, body = dialects.error_body(refusal, kind)
        headers = [("content-type", content_type), ("x-request-id", self.model.next_id()), *refusal.headers]
        if self.face == "clova" and refusal.status == 429:
            headers = [item for item in headers if as_asked or item[0] != "retry-after"]
            headers.append(("x-ratelimit-reset-requests", "6s"))
        self.model.accounts.answered(refusal.status)
        self.leave()
        await self.response.send(refusal.status, headers, body)

    async def _answer(
        self, key: str, body: dict[str, Any], directives: Directives, faults: dict[str, Fault], prompt: int
    ) -> None:
        model = self.model
        latency = model.latency
        if directives.ttft_ms is not None:
            latency = replace(latency, first_token_ms=directives.ttft_ms, first_token_p95_ms=None)
        if directives.token_ms is not None:
            latency = replace(latency, token_ms=directives.token_ms, token_p95_ms=None)
        cached = model.cached_tokens(key, body) if directives.cached is None else directives.cached
        row: BillRow = {
            "id": model.next_id(),
            "model": body["model"],
            "face": self.face,
            "key": key,
            "client_request_id": self.request.header("x-request-id"),
            "prompt_tokens": prompt,
            "cached_tokens": min(cached, prompt),
            "completion_tokens": 0,
            "reasoning_tokens": 0,
            "stream": bool(body.get("stream")),
            "finished": False,
            "cost_pico_usd": None,
        }
        salt = row["id"] if "other_answer" in faults else ""
        choices = answers.choices(answers.Asked(body, self.face, directives, model.config, salt))
        order = Order(row, body, choices, faults, latency)
        delivery = Delivery(
            order,
            request=self.request,
            response=self.response,
            accounts=model.accounts,
            config=model.config,
            rng=model.faults.rng,
            ended=self.leave,
        )
        await delivery.run()


def _context_length(detail: str) -> RefusedError:
    message = f"This model's maximum context length is exceeded: {detail}"
    return RefusedError(400, message, "context_length_exceeded", "40003", param="messages")
