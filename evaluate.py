"""量质量：`python evaluate.py`，三分钟之内一张表，旁边是同样量出的真人的歌。

- `loss`：留出的歌上的损失、困惑度、比特/字。
- `songs`：从留出的歌的首行写 N 首；首行不计，两边量的都是首行之后、同样截在 max_tokens 处的文字。
- `form`、`acrostic`、`copy`：句式、藏头、照抄的上限守住了没有，另写一批歌来查。
- `index`：只建照抄索引（inference.py 的 --max_copy、--check_copy 要用）。

区间是 95% 的自助法（Efron 1979）：以首为单位有放回地重抽，取第 2.5 与 97.5 百分位；损失以窗口为单位。
"""

import importlib.util
import json
import math
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import checkpoint
import config as configuration
import generation
import lyrics
import runtime
from checkpoint import BEST, METRICS, CheckpointError
from config import Flag, UserError
from corpus.cleaning import CLEANING_VERSION
from corpus.files import CorpusError
from corpus.tokens import IGNORED, Corpus, prepare, validation_batches
from lyrics import CopyIndex, LyricsError
from model import GPT, WRITING_DTYPES, prepare_for_writing
from tokenizer import Tokenizer, TokenizerError

DESCRIPTION = "量检查点的质量：留出的损失、写出的歌与真人的歌、句式、藏头、照抄。"
SAMPLING = generation.Sampling()
FLAGS = [
    Flag("checkpoint", Path(configuration.CHECKPOINT_DIR) / BEST, configuration.path(), "检查点"),
    Flag("lyrics_dir", None, configuration.path(optional=True), "歌词文件夹；不给则用检查点里记的"),
    Flag("cache_dir", None, configuration.path(optional=True), "词元缓存文件夹；不给则用检查点里记的"),
    Flag("copy_index", Path(configuration.CACHE_DIR) / "copies", configuration.path(), "照抄索引；没有或过时就重建"),
    Flag(
        "only",
        "all",
        configuration.one_of("all", "loss", "songs", "form", "acrostic", "copy", "index"),
        "只量一部分；all 是 loss 与 songs",
    ),
    Flag("songs", 100, configuration.whole(2, 100_000), "写几首"),
    Flag("seed", 0, configuration.whole(0, 2**30), "随机种子；第 i 首用 seed + i"),
    Flag("temperature", SAMPLING.temperature, configuration.between(0, 100), "温度"),
    Flag("top_p", SAMPLING.top_p, configuration.number(lambda v: 0 < v <= 1, "大于 0、不超过 1 的数"), "核抽样"),
    Flag("max_tokens", SAMPLING.max_tokens, configuration.whole(2), "一首最多写多少个词元；真人的歌也截在这里"),
    Flag("lines", 8, configuration.whole(1, 1000), "form：写几行"),
    Flag("line_chars", "7", configuration.text(), "form：每行几个字，同 inference.py"),
    Flag("rhyme", "auto", configuration.text(), "form：none、auto 或一个辙名"),
    Flag("rhyme_scheme", "AABA", configuration.text(), "form：韵式"),
    Flag("candidates", 8, configuration.whole(2, 256), "form：每行几稿取一（只写一稿的也报）"),
    Flag("max_copy", 12, configuration.whole(1, 1000), "copy：与语料连续相同不超过这么多字"),
    Flag("device", "auto", configuration.text(), "auto、cpu、cuda、cuda:1、mps"),
    Flag("dtype", "fp32", configuration.one_of(*WRITING_DTYPES), "精度"),
    Flag("json", None, configuration.path(optional=True), "另存结果与写出的歌（JSON）"),
    Flag("plot", None, configuration.path(optional=True), "另画损失曲线、行长与韵部的分布（PNG）"),
]
ROUNDS = 1000  # 自助法重抽几次
DISTINCT_CHARACTERS = 50  # distinct-n 只看这么多字：它随文字变长而下降，长短不一就不可比
BATCH = 32  # 成批写歌、成批算困惑度时几首一批
MOST_LOGITS = 2**26  # 算困惑度时一次至多展开这么多个 logits
LONGEST_BAR = 24  # 画行长时，再长的行都算在这里
CHINESE_FONTS = "Noto Sans CJK,Noto Sans SC,Source Han Sans,WenQuanYi,Microsoft YaHei,SimHei,PingFang,Heiti,Songti"

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


class Lyric(NamedTuple):
    """语料里的一首：歌名、歌手（没有则空）、正文。"""

    title: str
    singer: str
    text: str


def main(argv: Sequence[str]) -> int:
    given = configuration.parse_flags(FLAGS, argv, "evaluate.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    options |= {
        name: (Path.cwd() if name in given else configuration.REPOSITORY) / options[name]
        for name in ("checkpoint", "copy_index")
    }
    check_outputs(options)
    began = time.monotonic()
    subject = load(options)
    parts = ("loss", "songs") if options["only"] == "all" else (options["only"],)
    rows = [row for part in parts for row in PARTS[part](subject)]
    if rows:
        print_table(rows)
    subject.display.line(f"用时 {runtime.duration(time.monotonic() - began)}")
    if options["json"] is not None:
        write_json(options["json"], subject, rows)
    if options["plot"] is not None:
        plot(options["plot"], options["checkpoint"].parent / METRICS, subject)
    return 0


def check_outputs(options: dict[str, Any]) -> None:
    """写完歌才发现存不了、画不了就晚了，所以一开始就查。"""
    for name in ("json", "plot"):
        if options[name] is not None and not options[name].absolute().parent.is_dir():
            raise UserError(f"--{name} {options[name]}：文件夹不存在")
    if options["plot"] is not None and options["plot"].suffix.lower() != ".png":
        raise UserError(f"--plot {options['plot']}：文件名应以 .png 结尾")
    if options["plot"] is not None and importlib.util.find_spec("matplotlib") is None:
        raise UserError("画图要用 matplotlib：pip install -r requirements-plot.txt")


# ---------------------------------------------------------------------------
# 载入：检查点、语料、照抄索引
# ---------------------------------------------------------------------------


class Subject:
    """要量的模型与它的语料。

    Attributes:
        train, held_out: 训练与留出的歌。
        written: {名称: 写出的歌}，存进 JSON。
        distributions: {"模型"、"真人": (各行字数, 各行的辙)}，画图用。
    """

    def __init__(
        self, options: dict[str, Any], model: GPT, corpus: Corpus, windows: int, display: runtime.Display
    ) -> None:
        self.options, self.model, self.corpus, self.windows, self.display = options, model, corpus, windows, display
        self.tokenizer = corpus.tokenizer
        self.train = list(decode_songs(corpus.train, self.tokenizer))
        self.held_out = list(decode_songs(corpus.val, self.tokenizer))
        self.vocabulary = lyrics.Vocabulary(
            self.tokenizer.token_bytes, self.tokenizer.newline_id, self.tokenizer.eos_id
        )
        self.written: dict[str, list[str]] = {}
        self.distributions: dict[str, tuple[list[int], list[str | None]]] = {}

    def sampling(self, number: int) -> generation.Sampling:
        """第 number 首的抽样设置。"""
        o = self.options
        return generation.Sampling(
            o["max_tokens"], temperature=o["temperature"], top_p=o["top_p"], seed=o["seed"] + number
        )

    def write(self, prompt: str, count: int, first: int) -> Iterator[tuple[str, bool]]:
        """不加约束，从同一个开头写 count 首，是第 first 首起的；逐首给出（接在开头之后的文字，是否自己收尾）。"""
        tokenizer = self.tokenizer
        for start in range(0, count, BATCH):
            songs: list[list[int]] = [[] for _ in range(min(BATCH, count - start))]
            sampling = self.sampling(first + start)
            for step in generation.generate(
                self.model,
                tokenizer.song(prompt),
                sampling,
                tokenizer.eos_id,
                tokenizer.never_written,
                num_samples=len(songs),
                refused_ids=tokenizer.control_characters,
            ):
                for row, token in step:
                    songs[row].append(token)
            self.display.progress(f"写到第 {first + start + len(songs)} 首")
            yield from ((tokenizer.decode(song), len(song) < sampling.max_tokens) for song in songs)

    def compose(
        self, form: lyrics.Form, number: int, candidates: int = 1, copies: CopyIndex | None = None, max_copy: int = 0
    ) -> str:
        """逐行写第 number 首；句式写不出来时为空。"""
        tokenizer, sampling = self.tokenizer, self.sampling(number)
        ends = [tokenizer.newline_id, tokenizer.eos_id]
        prompt, banned = tokenizer.song(""), tokenizer.never_written
        composer = generation.Composer(
            self.model,
            prompt,
            sampling,
            ends,
            banned,
            candidates=candidates,
            refused_ids=tokenizer.control_characters,
        )
        plan = lyrics.SongPlan(form, self.vocabulary, tokenizer.encode, "", copies, max_copy)
        self.display.progress(f"写第 {number + 1} 首")
        try:
            return "".join(plan.write(composer, None if form.given else sampling.max_tokens))
        except LyricsError as error:
            self.display.line(f"第 {number + 1} 首没有写成：{error}")
            return ""

    def copies(self) -> CopyIndex:
        """照抄索引；没有，或语料、分词器变了，就重建。"""
        folder, identity = self.options["copy_index"], f"{self.tokenizer.fingerprint} {self.corpus.fingerprint}"
        found = CopyIndex.load(folder, identity)
        if found is None:
            songs = self.train + self.held_out
            labels = [
                f"《{song.title}》{song.singer}" if song.title else f"「{lyrics.lines_of(song.text)[0]}」"
                for song in songs
            ]
            try:
                texts = [song.text for song in songs]
                CopyIndex.build(texts, labels, folder, identity, len(self.train), self.display.progress)
            except OSError as error:
                raise UserError(f"写不了照抄索引 {folder}：{error.strerror or error}") from None
            self.display.line(f"已建照抄索引 {folder}：{len(songs):,} 首")
            found = CopyIndex.load(folder, identity)
            if found is None:
                raise UserError(f"照抄索引 {folder} 写好后读不回来：另一个进程也在建？请再运行一次")
        return found


def load(options: dict[str, Any]) -> Subject:
    """读检查点，备好语料：分词器与划分都照检查点的，从不重训分词器。"""
    display = runtime.Display(sys.stderr)
    device = runtime.pick_device(options["device"])
    if not options["checkpoint"].is_file():
        raise UserError(
            f"找不到检查点：{options['checkpoint']}；请先训练（python train.py），或用 --checkpoint 指明文件"
        )
    contents = checkpoint.load(options["checkpoint"])
    model, tokenizer = checkpoint.restore(contents, options["checkpoint"])
    if options["dtype"] == "int8" and device.type != "cpu":
        raise UserError("--dtype int8 只用于 CPU")
    model = prepare_for_writing(model.to(device), options["dtype"])
    stored = contents["config"]
    machine = f"{runtime.device_name(device)} · {options['dtype']} · torch {torch.__version__}"
    options["about"] = f"{options['checkpoint']}（第 {contents['iter']} 步）· {machine}"
    display.line(options["about"])

    def setting(name: str) -> Any:
        """检查点记下的值；没有或不合规则时是 config.py 的。"""
        try:
            return configuration.convert(stored[name], configuration.RULES[name.upper()])
        except (KeyError, ValueError, TypeError, OverflowError):
            return getattr(configuration, name.upper())

    def folder(name: str) -> Path:
        recorded = configuration.REPOSITORY / setting(name)
        default = configuration.REPOSITORY / getattr(configuration, name.upper())
        if options[name] is None and not recorded.is_dir():
            display.line(f"检查点里记的 {name} {recorded} 不在，改用 {default}")
        return options[name] or (recorded if recorded.is_dir() else default)

    options |= {name: folder(name) for name in ("lyrics_dir", "cache_dir")}
    corpus = prepare(
        options["lyrics_dir"],
        options["cache_dir"],
        configuration.REPOSITORY / f"{configuration.BPE_MODEL_PREFIX}.model",  # 给了分词器，就不会动它
        setting("bpe_vocab_size"),
        setting("val_fraction"),
        tokenizer=tokenizer,
        say=display.line,
        progress=display.progress,
        outputs=(options["checkpoint"].parent, options["cache_dir"], configuration.REPOSITORY / "swanlog"),
    )
    difference = corpus_difference(contents["corpus"], corpus.fingerprint)
    if difference:
        display.line(f"注意：{difference.format(options['lyrics_dir'])}，「留出」的歌可能训练过")
    return Subject(options, model, corpus, setting("eval_iters") * setting("batch_size"), display)


def corpus_difference(saved: Any, fingerprint: str) -> str:
    """检查点训练时的语料与现在的不同在哪里（{} 处填文件夹）；相同或检查点没有记是空的。"""
    if not isinstance(saved, dict):  # 早先的检查点：没有记，或与清洗的版本合在一个指纹里
        return "" if saved is None else "训练时的清洗规则与现在不同，{} 的划分或许也不同"
    if saved["files"] != fingerprint:
        return "{} 的内容与检查点训练时的不同"
    return "" if saved["cleaning"] == CLEANING_VERSION else "{} 的清洗规则与检查点训练时的不同"


def decode_songs(stream: np.ndarray, tokenizer: Tokenizer) -> Iterator[Lyric]:
    """词元流 → 一首首歌。"""
    start = 0
    for end in np.flatnonzero(stream == tokenizer.eos_id):
        song = stream[start:end].tolist()
        start = int(end) + 1
        body = song.index(tokenizer.lyric_id)
        singer = song.index(tokenizer.singer_id) if tokenizer.singer_id in song[:body] else body
        yield Lyric(tokenizer.decode(song[:singer]), tokenizer.decode(song[singer:body]), tokenizer.decode(song[body:]))


# ---------------------------------------------------------------------------
# 统计
# ---------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------
# 留出的损失，写出的文字的困惑度
# ---------------------------------------------------------------------------

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


def measure_loss(subject: Subject) -> list[Row]:
    """与 train.py 的 val_loss、val_bpc 同样的窗口与定义：比特/字的字含换行、歌名、歌手。"""
    characters = subject.tokenizer.token_characters
    parts = []
    for x, y in validation_batches(
        subject.corpus.val, subject.model.config.max_seq_len, BATCH, max(1, subject.windows)
    ):
        real = y != IGNORED
        parts.append((nats_of(subject.model, x, y), real.sum(axis=1), (characters[y] * real).sum(axis=1)))
        subject.display.progress(f"留出的损失：{sum(len(part[0]) for part in parts):,} 个窗口")
    columns = zip(("nats", "tokens", "characters"), zip(*parts, strict=True), strict=True)
    return rows_of(LOSS_METRICS, {"模型": {name: np.concatenate(column) for name, column in columns}})


def text_nats(subject: Subject, texts: Sequence[str]) -> Columns:
    """不加约束的模型给每段文字的 nats 与 tokens：重新分词，含换行，不计歌的头与 `</s>`；超过上下文的分段。"""
    tokenizer, length = subject.tokenizer, subject.model.config.max_seq_len
    header = len(tokenizer.song(""))
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts))
    for first in range(0, len(texts), BATCH):
        owners, windows = [], []
        for owner in range(first, min(first + BATCH, len(texts))):
            ids = np.array(tokenizer.song(texts[owner]))
            targets = np.where(np.arange(1, len(ids)) < header, IGNORED, ids[1:])
            tokens[owner] = (targets != IGNORED).sum()
            for start in range(0, len(targets), length):
                owners.append(owner)
                windows.append((ids[:-1][start : start + length], targets[start : start + length]))
        longest = max(len(x) for x, _ in windows)
        x = np.stack([np.pad(x, (0, longest - len(x))) for x, _ in windows])  # 右边的补零不影响左边
        y = np.stack([np.pad(y, (0, longest - len(y)), constant_values=IGNORED) for _, y in windows])
        np.add.at(nats, owners, nats_of(subject.model, x, y))
    return {"nats": nats, "tokens": tokens}


# ---------------------------------------------------------------------------
# 写出的歌与真人的歌
# ---------------------------------------------------------------------------

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
    return [line for line in lyrics.lines_of(whole) if lyrics.normalise(line)]


def measure_song(lines: Sequence[str], ended: bool, training_lines: set[str], copies: CopyIndex) -> dict[str, float]:
    """一首的各个数。

    - dominant：末字属于全首最常见的一辙的行数；rhymed_pairs：相邻两行同辙的对数（辙见 `lyrics.rhyme_class`）。
    - characters、squares：各行可唱的字数之和、平方和。
    - distinct_n：见 `distinct`，只看前 DISTINCT_CHARACTERS 字，不足的不计；repeated_4：1 − distinct-4，
      全首一起数，即 seq-rep-4（Welleck 等 2020）。
    - known：整行（只看字）见于训练集的行数；copied：与训练集里某一首连续相同的最多字数，可以跨行。
    """
    counts = [lyrics.sung_count(line) for line in lines]
    classes = [lyrics.rhyme_class(line) for line in lines]
    sung = lyrics.normalise("".join(lines))
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
        "known": sum(lyrics.normalise(line) in training_lines for line in lines),
        "copied": copies.longest(sung, training_only=True).length,
        "ended": ended,
    }


def measure_songs(subject: Subject) -> list[Row]:
    """从留出的歌的首行写 songs 首（歌不够时，一个首行写几首），与那些歌原来的下文相比。"""
    count, tokenizer = subject.options["songs"], subject.tokenizer
    able = [song.text for song in subject.held_out if "\n" in song.text]
    if not able:
        raise UserError("留出的歌都只有一行，没有可比的下文")
    chosen = random.Random(subject.options["seed"]).sample(able, min(count, len(able)))
    sides: dict[str, list[tuple[list[str], bool]]] = {"模型": [], "真人": []}
    written = subject.written["songs"] = []
    for place, text in enumerate(chosen):
        first, _, rest = text.partition("\n")
        for song, ended in subject.write(first + "\n", len(range(place, count, len(chosen))), len(written)):
            written.append(first + "\n" + song)
            sides["模型"].append((whole_lines(song, ended), ended))
        tokens, most = tokenizer.encode(rest), subject.options["max_tokens"]
        ended = len(tokens) < most
        sides["真人"].append((whole_lines(tokenizer.decode(tokens[:most]), ended), ended))
    lines = {side: [line for song, _ in songs for line in song] for side, songs in sides.items()}
    subject.distributions = {
        side: ([lyrics.sung_count(line) for line in some], [lyrics.rhyme_class(line) for line in some])
        for side, some in lines.items()
    }
    wanted = {lyrics.normalise(line) for some in lines.values() for line in some}
    known = wanted.intersection(lyrics.normalise(line) for song in subject.train for line in song.text.split("\n"))
    copies = subject.copies()
    columns = {
        side: table_of([measure_song(song, ended, known, copies) for song, ended in songs])
        for side, songs in sides.items()
    }
    return rows_of(SONG_METRICS, columns)


# ---------------------------------------------------------------------------
# 句式、藏头、照抄的上限：另用一套读法查
# ---------------------------------------------------------------------------

# 韵母 → 辙，与 lyrics.py 的表各写各的：这里查的正是那张表用得对不对。
FINALS = {
    final: name
    for name, *finals in map(
        str.split,
        "发花 a ia ua;梭坡 o e uo;乜斜 ie ve ê;一七 i v er;姑苏 u;怀来 ai uai;灰堆 ei uei;遥条 ao iao;油求 ou iou;"
        "言前 an ian uan van;人辰 en in uen vn;江阳 ang iang uang;中东 eng ing ueng ong iong".split(";"),
    )
    for final in finals
}


def final_class(line: str) -> str | None:
    """整行一起注音，末字的辙；不以汉字收尾时 None。"""
    import pypinyin

    written = re.sub(r"[\W_]+$", "", line)
    finals = pypinyin.lazy_pinyin(written, style=pypinyin.Style.FINALS, strict=True)
    return FINALS.get(finals[-1]) if written and written[-1] >= "\u3400" else None


def character_count(line: str) -> int:
    """字数：外文词与数目各算一个，其余的字各一个。"""
    return len(re.findall(r"[^\W_\u2e80-\U0010ffff]+|[^\W_]", line))


def rhymes_kept(lines: Sequence[str], scheme: str, rhyme: str) -> list[bool]:
    """每一行是否押得合乎韵式。

    同字母的各行同辙，不同字母不同辙；只出现一次的字母不必押，但不与别的字母同辙；X 不论。
    rhyme 为一个辙名时，第一个字母押的是它。
    """
    main_letter = scheme.lstrip("X")[:1]
    bound = {letter for letter in scheme if letter != "X" and (scheme.count(letter) > 1 or letter == main_letter)}
    classes = {main_letter: rhyme} if rhyme in FINALS.values() else {}
    kept = []
    for index, line in enumerate(lines):
        letter, found = scheme[index % len(scheme)], final_class(line)
        if letter in bound and found is not None:
            classes.setdefault(letter, found)
        others = {name for other, name in classes.items() if other != letter}
        in_place = found == classes.get(letter) and found is not None if letter in bound else True
        kept.append(letter == "X" or (in_place and found not in others))
    return kept


FORM_METRICS = [
    Metric("行数、行长合乎要求的行", ".2%", ratio("length_kept", "asked")),
    Metric("押韵合乎要求的行", ".2%", ratio("rhyme_kept", "asked")),
    Metric("困惑度（每词元，不加约束的模型）", ",.1f", perplexity),
]


def measure_form(subject: Subject) -> list[Row]:
    """句式写的歌，与同样抽样设置下自由写、截到同样行数的歌；两边都没有开头。"""
    o = subject.options
    form = lyrics.make_form(o["lines"], o["line_chars"], o["rhyme"], o["rhyme_scheme"], "", None)
    free = [text for text, _ in subject.write("", o["songs"], 0)]
    sides = {"自由写": ["\n".join(lyrics.lines_of(text)[: o["lines"]]) for text in free]}
    for candidates in (1, o["candidates"]):
        texts = [subject.compose(form, number, candidates) for number in range(o["songs"])]
        sides[f"{candidates} 稿"] = texts
    subject.written |= sides
    columns = {side: dict(text_nats(subject, texts)) for side, texts in sides.items()}
    for side, texts in list(sides.items())[1:]:
        measured = []
        for text in texts:
            lines = lyrics.lines_of(text)[: o["lines"]] if text.count("\n") + 1 <= o["lines"] else []
            bounds = [form.lengths[index % len(form.lengths)] for index in range(len(lines))]
            lengths = [low <= character_count(line) <= high for line, (low, high) in zip(lines, bounds, strict=True)]
            kept = rhymes_kept(lines, form.scheme, form.rhyme)
            measured.append({"asked": o["lines"], "length_kept": sum(lengths), "rhyme_kept": sum(kept)})
        columns[side] |= table_of(measured)
    rows = rows_of(FORM_METRICS, columns)
    base = rows[-1].cells["自由写"][0]
    over = {side: (value / base, None, None) for side, (value, _, _) in rows[-1].cells.items()}
    return [*rows, Row("困惑度与自由写之比", ".3f", over)]


def draw_acrostics(subject: Subject) -> list[str]:
    """藏头的字：取自留出的歌的行，四到八个，都在词表里。"""
    draw = random.Random(subject.options["seed"])
    lines = {line for song in subject.held_out for line in song.text.split("\n")}
    usable = [
        [c for c in lyrics.normalise(line) if not lyrics.in_word(c) and c in subject.vocabulary.characters]
        for line in sorted(lines)
    ]
    usable = [line for line in usable if len(line) >= 4]
    if not usable:
        raise UserError("留出的歌里没有四个字以上的行，出不了藏头")
    drawn = []
    for _ in range(subject.options["songs"]):
        line = draw.choice(usable)
        drawn.append("".join(line[: draw.randint(4, 8)]))
    return drawn


def measure_acrostic(subject: Subject) -> list[Row]:
    """藏头诗：各行的第一个字连起来就是所要的字，行数也相同。"""
    acrostics = draw_acrostics(subject)
    exact = []
    for number, acrostic in enumerate(acrostics):
        text = subject.compose(lyrics.make_form(None, None, "none", None, acrostic, None), number)
        subject.written.setdefault("acrostic", []).append(text)
        exact.append({"exact": "".join(line[0] for line in text.split("\n") if line) == acrostic})
    return rows_of([Metric("藏头分毫不差", ".1%", mean("exact"))], {"模型": table_of(exact)})


def copied_beyond(text: str, most: int, corpus: str) -> bool:
    """text 里有没有超过 most 个字连着出现在语料里：逐段用 `in` 找，不用索引。"""
    sung = lyrics.normalise(text)
    return any(sung[start : start + most + 1] in corpus for start in range(len(sung) - most))


def measure_copy(subject: Subject) -> list[Row]:
    """限了照抄与没有限的各写 songs 首，没有开头；与整个语料（训练与留出）比。"""
    copies, most = subject.copies(), subject.options["max_copy"]
    corpus = "\0".join(lyrics.normalise(song.text) for song in subject.train + subject.held_out)
    sides = {}
    for side, limit in (("不限", 0), (f"--max_copy {most}", most)):
        texts = [subject.compose(lyrics.Form(), number, 1, copies, limit) for number in range(subject.options["songs"])]
        subject.written[side] = texts
        sides[side] = table_of(
            [
                {"beyond": copied_beyond(text, most, corpus), "copied": copies.longest(lyrics.normalise(text)).length}
                for text in texts
            ]
        )
    return rows_of(
        [
            Metric(f"有超过 {most} 字与语料相同的歌", ".1%", mean("beyond")),
            Metric("最长的相同（字）：中位数", ".0f", quantile("copied", 0.5)),
            Metric("最长的相同（字）：最多", ".0f", quantile("copied", 1.0)),
        ],
        sides,
    )


def build_index(subject: Subject) -> list[Row]:
    subject.copies()
    subject.display.line(f"照抄索引可用：{subject.options['copy_index']}")
    return []


PARTS: dict[str, Callable[[Subject], list[Row]]] = {
    "loss": measure_loss,
    "songs": measure_songs,
    "form": measure_form,
    "acrostic": measure_acrostic,
    "copy": measure_copy,
    "index": build_index,
}


# ---------------------------------------------------------------------------
# 表、JSON、图
# ---------------------------------------------------------------------------


def shown(found: Estimate | None, spec: str) -> str:
    if found is None or math.isnan(found[0]):
        return "–"
    value, low, high = found
    return f"{value:{spec}}" + (f"（{low:{spec}}–{high:{spec}}）" if low is not None else "")


def print_table(rows: Sequence[Row]) -> None:
    sides = list(dict.fromkeys(side for row in rows for side in row.cells))
    print(f"| 项目 | {' | '.join(sides)} |\n|{' --- |' * (len(sides) + 1)}")
    for row in rows:
        print(f"| {row.name} | {' | '.join(shown(row.cells.get(side), row.spec) for side in sides)} |", flush=True)


def write_json(path: Path, subject: Subject, rows: Sequence[Row]) -> None:
    options = {name: str(value) if isinstance(value, Path) else value for name, value in subject.options.items()}
    results = {
        row.name: {side: [None if v is None or math.isnan(v) else v for v in cell] for side, cell in row.cells.items()}
        for row in rows
    }
    contents = {"options": options, "corpus": subject.corpus.fingerprint, "results": results, "songs": subject.written}
    try:
        path.write_text(json.dumps(contents, ensure_ascii=False, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"写不了 {path}：{error.strerror}") from None


def loss_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.jsonl 里的训练与验证损失；没有或读不懂的行略过。"""
    curves: dict[str, list[tuple[int, float]]] = {"train_loss": [], "val_loss": []}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            event = json.loads(line)
            for name, points in curves.items():
                if isinstance(event.get(name), (int, float)):
                    points.append((event["iter"], event[name]))
        except (ValueError, AttributeError, KeyError):
            continue
    return curves


def plot(path: Path, metrics: Path, subject: Subject) -> None:
    """损失曲线、行长与韵部的分布；没有中文字体时用英文。"""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    fonts = sorted({entry.name for entry in font_manager.fontManager.ttflist})
    chinese = next((font for known in CHINESE_FONTS.split(",") for font in fonts if font.startswith(known)), None)
    pyplot.rcParams |= {"font.family": [chinese or "DejaVu Sans"], "axes.unicode_minus": False}

    def label(chinese_text: str, english: str) -> str:
        return chinese_text if chinese else english

    sides = {side: label(side, {"模型": "model", "真人": "human"}[side]) for side in subject.distributions}
    figure, axes = pyplot.subplots(1, 3 if sides else 1, figsize=(15 if sides else 5, 4), squeeze=False)
    for name, points in loss_curves(metrics).items():
        if points:
            axes[0, 0].plot(
                *zip(*points, strict=True),
                label={"train_loss": label("训练", "train")}.get(name, label("验证", "held out")),
            )
    axes[0, 0].set(title=label("损失（nat/词元）", "loss (nats per token)"), xlabel=label("步", "step"))
    for place, (side, name) in enumerate(sides.items()):
        lengths, classes = subject.distributions[side]
        bars = (
            (1, np.bincount(np.minimum(np.array(lengths, int), LONGEST_BAR), minlength=LONGEST_BAR + 1)),
            (2, [classes.count(c) for c in lyrics.RHYME_CLASSES]),
        )
        for column, counts in bars:
            heights = np.array(counts) / max(1, len(lengths))
            axes[0, column].bar(np.arange(len(heights)) + 0.4 * (place - 0.5), heights, 0.4, label=name)
    if sides:
        axes[0, 1].set(title=label("每行字数", "characters per line"))
        axes[0, 1].set_xticks(range(0, LONGEST_BAR + 1, 4), [*range(0, LONGEST_BAR, 4), f"≥{LONGEST_BAR}"])
        axes[0, 2].set(title=label("行末的辙", "rhyme class of the last character"))
        names = [label(name, finals.split()[0]) for name, finals in lyrics.RHYME_CLASSES.items()]
        axes[0, 2].set_xticks(range(len(names)), names)
    for axis in axes[0]:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"写不了 {path}：{error.strerror}") from None
    finally:
        pyplot.close(figure)


if __name__ == "__main__":
    configuration.run_script(
        main, UserError, CorpusError, CheckpointError, TokenizerError, LyricsError, runtime.DeviceError
    )
