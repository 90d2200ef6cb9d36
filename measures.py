"""质量的指标：一首歌的各个数，比与平均，95% 的自助法区间。"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from corpus.batches import IGNORED
from lyrics.copies import CopyIndex
from lyrics.sound import lines_of, normalise, rhyme_class, sung_count
from model import GPT

ROUNDS = 1000  # 自助法重抽几次

DISTINCT_CHARACTERS = 50  # distinct-n 只看这么多字：它随文字变长而下降，长短不一就不可比

MOST_LOGITS = 2**26  # 算困惑度时一次至多展开这么多个 logits

Columns = Mapping[str, np.ndarray]  # 每项一列，一首（或一个窗口）一个数

Estimate = tuple[float, float | None, float | None]  # 值与区间的两端


class Metric(NamedTuple):
    """一项指标。

    Attributes:
        spec: 显示的格式。
        value: 各首的数 → 指标。
    """

    name: str
    spec: str
    value: Callable[[Columns], float]


class Row(NamedTuple):
    name: str
    spec: str
    cells: dict[str, Estimate]


def ratio(numerator: str, denominator: str) -> Callable[[Columns], float]:
    """各首的和之比。"""

    def value(columns: Columns) -> float:
        total = columns[denominator].sum()
        return float(columns[numerator].sum() / total) if total else math.nan

    return value


def mean(name: str) -> Callable[[Columns], float]:
    """各首的平均；量不出的（nan）不计。"""
    return lambda columns: float(np.nanmean(columns[name])) if not np.isnan(columns[name]).all() else math.nan


def quantile(name: str, share: float) -> Callable[[Columns], float]:
    return lambda columns: float(np.quantile(columns[name], share))


def spread(columns: Columns) -> float:
    """全部行字数的标准差。"""
    lines = columns["lines"].sum()
    if not lines:
        return math.nan
    variance = columns["squares"].sum() / lines - (columns["characters"].sum() / lines) ** 2
    return math.sqrt(max(0.0, variance))


def perplexity(columns: Columns) -> float:
    return math.exp(ratio("nats", "tokens")(columns))


def table_of(measured: Sequence[Mapping[str, float]]) -> Columns:
    return {name: np.array([one[name] for one in measured], dtype=float) for name in measured[0]}


def estimate(metric: Metric, columns: Columns) -> Estimate:
    """指标与 95% 区间：自助法（Efron 1979），重抽 ROUNDS 次；量不出时区间为空。"""
    value = metric.value(columns)
    count = len(next(iter(columns.values())))
    drawn = np.random.default_rng(0).integers(count, size=(ROUNDS, count))
    again = [metric.value({name: column[rows] for name, column in columns.items()}) for rows in drawn]
    if count < 2 or math.isnan(value) or np.isnan(again).all():
        return value, None, None
    low, high = np.nanquantile(again, [0.025, 0.975])
    return value, float(low), float(high)


def rows_of(metrics: Sequence[Metric], sides: Mapping[str, Columns]) -> list[Row]:
    """每项指标一行，每一边一格；缺了所需的列就空着。"""
    rows = []
    for metric in metrics:
        cells = {}
        for side, columns in sides.items():
            try:
                cells[side] = estimate(metric, columns)
            except KeyError:
                cells[side] = (math.nan, None, None)
        rows.append(Row(metric.name, metric.spec, cells))
    return rows


LOSS_METRICS = [
    Metric("留出的损失（nat/词元）", ".3f", ratio("nats", "tokens")),
    Metric("困惑度（每词元）", ",.1f", perplexity),
    Metric("比特/字", ".3f", lambda columns: ratio("nats", "characters")(columns) / math.log(2)),
]


@torch.inference_mode()
def nats_of(model: GPT, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """每行目标的负对数概率之和（nat），目标为 IGNORED 的不计。x、y: (B, T) int64 → (B,)。"""
    device, found = model.embedding.weight.device, []
    rows = max(1, MOST_LOGITS // (model.config.vocab_size * x.shape[1]))
    for start in range(0, len(x), rows):
        logits = model(torch.from_numpy(x[start : start + rows]).to(device)).float()  # (b, T, V)
        targets = torch.from_numpy(y[start : start + rows]).to(device)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        found.append(losses.cpu().double().sum(dim=1).numpy())
    return np.concatenate(found)


SONG_METRICS = [
    Metric("押在全首主韵上的行", ".1%", ratio("dominant", "lines")),
    Metric("相邻两行同韵", ".1%", ratio("rhymed_pairs", "pairs")),
    Metric("每行字数：平均", ".2f", ratio("characters", "lines")),
    Metric("每行字数：标准差", ".2f", spread),
    Metric(f"distinct-1（每首前 {DISTINCT_CHARACTERS} 字）", ".3f", mean("distinct_1")),
    Metric(f"distinct-2（每首前 {DISTINCT_CHARACTERS} 字）", ".3f", mean("distinct_2")),
    Metric("一首之内重复的 4 字片段", ".1%", mean("repeated_4")),
    Metric("原样见于训练集的行", ".1%", ratio("known", "lines")),
    Metric("与训练集最长的相同（字）：中位数", ".0f", quantile("copied", 0.5)),
    Metric("与训练集最长的相同（字）：95 百分位", ".0f", quantile("copied", 0.95)),
    Metric("以 </s> 收尾", ".1%", mean("ended")),
]


def distinct(text: str, n: int) -> float:
    """不同的 n 元（字）占全部 n 元的份额：distinct-n（Li 等 2016）。不足 n 字时 nan。

    原文以词计、合全部回复一起数；这里以字计、一首一数再平均，才能以首为单位重抽。
    """
    grams = [text[start : start + n] for start in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def whole_lines(text: str, ended: bool) -> list[str]:
    """写完的各行，须有字；没有收尾（被截断）的歌，最后一行不计，除非只有它。"""
    whole = text if ended else text.rpartition("\n")[0] or text
    return [line for line in lines_of(whole) if normalise(line)]


def measure_song(lines: Sequence[str], ended: bool, training_lines: set[str], copies: CopyIndex) -> dict[str, float]:
    """一首的各个数。

    - dominant：末字属于全首最常见的一辙的行数；rhymed_pairs：相邻两行同辙的对数（辙见 `rhyme_class`）。
    - characters、squares：各行可唱的字数之和、平方和。
    - distinct_n：见 `distinct`，只看前 DISTINCT_CHARACTERS 字，不足的不计；repeated_4：1 − distinct-4，
      全首一起数，即 seq-rep-4（Welleck 等 2020）。
    - known：整行（只看字）见于训练集的行数；copied：与训练集里某一首连续相同的最多字数，可以跨行。
    """
    counts = [sung_count(line) for line in lines]
    classes = [rhyme_class(line) for line in lines]
    sung = normalise("".join(lines))
    opening = sung[:DISTINCT_CHARACTERS] if len(sung) >= DISTINCT_CHARACTERS else ""
    return {
        "lines": len(lines),
        "dominant": max(Counter(name for name in classes if name).values(), default=0),
        "pairs": max(0, len(lines) - 1),
        "rhymed_pairs": sum(a is not None and a == b for a, b in zip(classes, classes[1:], strict=False)),
        "characters": sum(counts),
        "squares": sum(count * count for count in counts),
        "distinct_1": distinct(opening, 1),
        "distinct_2": distinct(opening, 2),
        "repeated_4": 1 - distinct(sung, 4),
        "known": sum(normalise(line) in training_lines for line in lines),
        "copied": copies.longest(sung, training_only=True).length,
        "ended": ended,
    }
