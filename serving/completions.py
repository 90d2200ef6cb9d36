"""OpenAI 的写法：completions 的请求与回应。没有对话：这个模型不会。"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from serving import requests
from serving.guard import error_body
from serving.requests import BadRequest
from serving.songs import Desk, Work, write_songs
from serving.turns import Event

# 别的写法里有、这里做不到的；给了不起作用的值不算
_IDLE: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (),
    "presence_penalty": (0,),
    "suffix": ("",),
}
_OWN = ("model", "prompt", "n", "stop", "stream", "stream_options", "echo", "user")
MOST_STOPS = 4


class Completion:
    """一个请求：要写的事，与怎样把写出的说成 OpenAI 的样子。

    Raises:
        BadRequest: 说在哪个字段。
    """

    def __init__(self, body: dict[str, Any], desk: Desk, model: str) -> None:
        for name, idle in _IDLE.items():
            value = body.pop(name, None)
            if value is not None and value not in idle:
                raise BadRequest({name: f"不支持 {name}"})
        self.prompt = _prompt(body.get("prompt", ""))
        self.stops = _stops(body.get("stop"))
        self.stream, self.echo = _switch(body, "stream"), _switch(body, "echo")
        options = body.get("stream_options") or {}
        self.told_usage = isinstance(options, dict) and options.get("include_usage") is True
        values = {name: value for name, value in body.items() if name not in _OWN}
        if body.get("n") is not None:
            values["num_samples"] = requests.whole_of(body["n"], "n", 1, requests.MOST_SONGS)
        self.settings = desk.settings({"settings": values}, self.prompt)
        self._writer = desk.writer
        self._frame = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._prompt_tokens = len(desk.writer.tokenizer.encode(self.prompt))

    @property
    def work(self) -> Work:
        return lambda turn: write_songs(self._writer, self.prompt, self.settings, turn, self.stops)

    async def whole(self, events: "asyncio.Queue[Event | None]") -> tuple[int, dict[str, Any]]:
        """写完一起给：（状态码，回应）。"""
        songs = [self.prompt if self.echo else "" for _ in range(self.settings.num_samples)]
        reasons, tokens = ["length"] * len(songs), 0
        while (event := await events.get()) is not None:
            if "error" in event:
                return event["status"], error_body(event["error"], event["status"])
            if "text" in event:
                songs[event["song"]] += event["text"]
            if "ended" in event:
                reasons[event["song"]] = _reason(event)
                tokens += event["tokens"]
        choices = [_choice(number, text, reasons[number]) for number, text in enumerate(songs)]
        return 200, {**self._frame, "choices": choices, "usage": self._usage(tokens)}

    async def chunks(self, events: "asyncio.Queue[Event | None]") -> AsyncIterator[bytes]:
        """边写边给（server-sent events）。"""
        tokens = 0
        while (event := await events.get()) is not None:
            if "error" in event:
                yield _sse(error_body(event["error"], event["status"]))
            elif "prompt" in event and self.echo:
                yield _sse({**self._frame, "choices": [_choice(event["song"], self.prompt, None)]})
            elif "text" in event:
                yield _sse({**self._frame, "choices": [_choice(event["song"], event["text"], None)]})
            elif "ended" in event:
                tokens += event["tokens"]
                yield _sse({**self._frame, "choices": [_choice(event["song"], "", _reason(event))]})
        if self.told_usage:
            yield _sse({**self._frame, "choices": [], "usage": self._usage(tokens)})
        yield b"data: [DONE]\n\n"

    def _usage(self, tokens: int) -> dict[str, int]:
        before = self._prompt_tokens
        return {"prompt_tokens": before, "completion_tokens": tokens, "total_tokens": before + tokens}


def _reason(event: Event) -> str:
    return "stop" if event["ended"] else "length"


def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _sse(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def _prompt(given: Any) -> str:
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if given is None:
        given = ""
    if not isinstance(given, str):
        raise BadRequest({"prompt": "prompt 应为一段文字；几首用 n，几个开头请分几次"})
    return requests.text_of({"prompt": given}, "prompt")


def _stops(given: Any) -> list[str]:
    stops = [] if given is None else given if isinstance(given, list) else [given]
    if len(stops) > MOST_STOPS or not all(isinstance(stop, str) and 0 < len(stop) <= 100 for stop in stops):
        raise BadRequest({"stop": f"stop 应为一段文字，或至多 {MOST_STOPS} 段"})
    return stops


def _switch(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest({name: f"{name} 应为 true 或 false"})
    return bool(value)
