"""Answers a chat completion with a constant: what is measured is what must be there before that can be said."""

from __future__ import annotations

import time
from typing import Any

import boto3
from fastapi import APIRouter, FastAPI
from mangum import Mangum
from pydantic import BaseModel

bedrock = boto3.client("bedrock-runtime", region_name="ap-northeast-2")
app = FastAPI()
router = APIRouter(prefix="/chat")


class Message(BaseModel):
    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatRequest(BaseModel):
    model: str
    messages: list[Message]
    stream: bool | None = False
    temperature: float | None = None
    max_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None


class Choice(BaseModel):
    index: int
    message: Message
    finish_reason: str


class ChatResponse(BaseModel):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]


@router.post("/completions", response_model=ChatResponse)
def create_chat_completion(request: ChatRequest) -> ChatResponse:
    message = Message(role="assistant", content="서울의 가을은 맑습니다.")
    choice = Choice(index=0, message=message, finish_reason="stop")
    return ChatResponse(id="chatcmpl-1", created=int(time.time()), model=request.model, choices=[choice])


app.include_router(router)
lambda_handler = Mangum(app, lifespan="off")
