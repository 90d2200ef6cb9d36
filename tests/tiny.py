"""小到几秒训完的语料与训练，供各测试使用。"""

import json
import os
import signal
from pathlib import Path

import torch

import train

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = (
    "--preset cpu --n_layers 2 --n_heads 2 --n_embed 32 --max_seq_len 32 --batch_size 4 --train_iters 10 "
    "--warmup_iters 2 --eval_interval 4 --eval_iters 2 --log_interval 1 --save_interval 3 --generate_tokens 5 "
    "--fit_to_corpus false --average 0.5 --bpe_vocab_size 3000 --use_swanlab false --use_compile false --device cpu"
).split()
CHARACTERS = "今夜我在风里等你山高水远路灯下雨落长街故乡的月亮照着河岸少年唱歌走过四季花开"


def write_corpus(folder: Path, songs: int, start: int = 0) -> Path:
    """互不相同的歌：每首从字表的不同位置、以不同步长取字。"""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(start, start + songs):
        step, place, lines = number % 7 + 2, number, []
        for line in range(8):
            length = 5 + (number + line) % 4
            lines.append(
                "".join(CHARACTERS[(place + i * step + line * number) % len(CHARACTERS)] for i in range(length))
            )
            place += length * step
        written.append({"name": f"歌{number}", "singer": f"人{number % 5}", "lyric": lines})
    path = folder / f"songs{start}.json"
    path.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
    return folder


def stop_at(monkeypatch, iteration: int, number: int = signal.SIGINT) -> None:
    """在完成第 iteration 步时给自己发一个信号，只发一次。"""
    original = train.Trainer.step
    sent = []

    def step(self):
        result = original(self)
        if self.progress.iteration == iteration and not sent:
            sent.append(True)
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(train.Trainer, "step", step)


def crash_at(monkeypatch, iteration: int) -> None:
    """在完成第 iteration 步时出一次错（不保存）。"""
    original = train.Trainer.step
    crashed = []

    def step(self):
        result = original(self)
        if self.progress.iteration == iteration and not crashed:
            crashed.append(True)
            raise ZeroDivisionError
        return result

    monkeypatch.setattr(train.Trainer, "step", step)


def metrics(directory: Path) -> list[dict]:
    wall_clock = ("time", "tokens_per_s", "peak_memory_gb", "mfu")
    events = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in event.items() if key not in wall_clock} for event in events]


def figures(directory: Path) -> list[dict]:
    """记录里的数，不含试写的歌词：两边只是近似相同时比它们。"""
    return [{key: value for key, value in event.items() if not isinstance(value, str)} for event in metrics(directory)]


def assert_identical(a, b, path="") -> None:
    """两个检查点逐位相同。"""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{path}/{index}")
    else:
        assert a == b, path


def assert_same_run(first: Path, second: Path) -> None:
    for name in ("latest.pt", "best.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (first, second))
        for contents in (a, b):
            contents.pop("run_id", None)
            for place in ("checkpoint_dir", "cache_dir", "bpe_model_prefix"):
                contents["config"].pop(place)
        assert_identical(a, b, name)
    assert metrics(first) == metrics(second)
