"""Passes requests on as they are: ``python -m uvicorn --app-dir benchmarks/floor app:app``.

UPSTREAM is where to, with ``/v1`` at its end.
"""

from __future__ import annotations

import json
import os

import httpx
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

app = FastAPI()
client = httpx.AsyncClient(timeout=60.0)
upstream = os.environ.get("UPSTREAM", "") + "/chat/completions"


@app.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    body = await request.body()
    headers = {"content-type": "application/json", "authorization": request.headers["authorization"]}
    if not json.loads(body).get("stream"):
        answer = await client.post(upstream, content=body, headers=headers)
        return Response(answer.content, answer.status_code, media_type="application/json")
    opened = await client.send(client.build_request("POST", upstream, content=body, headers=headers), stream=True)
    return StreamingResponse(opened.aiter_raw(), opened.status_code, media_type="text/event-stream")
