"""写歌的测试共用的：小词表的歌词、设置、数一数写出的行。"""

import os
import subprocess
import sys

import torch
from tiny import REPOSITORY

import generation
import inference
from inference import Conversation
from lyrics.sound import normalise, sung_count
from writing.settings import Settings
from writing.writer import Writer

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
LINES = [
    f"{who}{where}{what}"
    for who in "我你他谁"
    for where in ("在风里", "在河岸", "到故乡")
    for what in ("唱歌", "等你", "看月亮")
]
MAX_SEQ_LEN = 32
FIXES_LINES = ("lines", "acrostic", "structure")  # 定了行数，就不能再给 max_tokens


def settings(**changes) -> Settings:
    values = {flag.name: flag.default for flag in inference.SONG_FLAGS}
    fixed = any(changes.get(name) is not None for name in FIXES_LINES)
    return Settings(**{**values, "max_tokens": None if fixed else 40, "seed": 1, **changes})


def favour_ending(writer: Writer, monkeypatch, amount: float) -> None:
    """</s> 的 logit 加上 amount。"""
    original = writer.model.logits
    bias = torch.zeros(writer.tokenizer.vocab_size)
    bias[writer.tokenizer.eos_id] = amount
    monkeypatch.setattr(writer.model, "logits", lambda hidden: original(hidden) + bias)


def script(*argv: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "inference.py"), *argv]
    return subprocess.run(
        command, capture_output=True, env=ENVIRONMENT, encoding="utf-8", timeout=60, check=False, **options
    )


def stop_after(monkeypatch, steps: int) -> None:
    """写了几步之后按一次 Ctrl-C。"""
    original = generation.generate
    pressed = []

    def interrupted(*arguments, **options):
        for number, step in enumerate(original(*arguments, **options)):
            if number == steps and not pressed:
                pressed.append(True)
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(generation, "generate", interrupted)


def sung_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]


def counts(text: str) -> list[int]:
    return [sung_count(line) for line in sung_lines(text)]


def copied(text: str) -> int:
    """与语料连续相同的最多几个字。"""
    corpus, sung = "".join(LINES), normalise(text)
    spans = ((start, end) for start in range(len(sung)) for end in range(start + 1, len(sung) + 1))
    return max((end - start for start, end in spans if sung[start:end] in corpus), default=0)


def converse(conversation: Conversation, monkeypatch, *events) -> None:
    """依次给对话这些输入行；异常类则在读取时抛出。"""
    waiting = list(events)

    def read(_):
        event = waiting.pop(0)
        if isinstance(event, str):
            return event
        raise event

    monkeypatch.setattr(inference, "_read_line", read)
    conversation.run()
    assert not waiting
