"""量质量：`python evaluate.py`，三分钟之内一张表，旁边是同样量出的真人的歌。

- `loss`：留出的歌上的损失、困惑度、比特/字。
- `songs`：从留出的歌的首行写 N 首；首行不计，两边量的都是首行之后、同样截在 max_tokens 处的文字。
- `index`：只建照抄索引（inference.py 的 --max_copy、--check_copy 要用）。

区间是 95% 的自助法（Efron 1979）：以首为单位有放回地重抽，取第 2.5 与 97.5 百分位；损失以窗口为单位。
"""

import importlib.util
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flags
import generation
from corpus.batches import IGNORED, validation_batches
from corpus.cleaning import CLEANING_VERSION
from corpus.files import CorpusError
from corpus.tokens import Corpus, decode_songs, prepare
from corpus.weights import parse_weights
from flags import Flag, constants
from lyrics.copies import CopyIndex
from lyrics.form import LyricsError
from lyrics.sound import RHYME_CLASSES, normalise, rhyme_class, sung_count
from measures import (
    LOSS_METRICS,
    SONG_METRICS,
    Estimate,
    Row,
    measure_song,
    nats_of,
    rows_of,
    table_of,
    whole_lines,
)
from model import GPT
from terminal import Display, UserError, duration, run_script
from tokenizer import TokenizerError
from training import checkpoint
from training.checkpoint import BEST, METRICS, CheckpointError
from training.device import DeviceError, device_name, pick_device
from writing import copying
from writing.kernels import WRITING_DTYPES, prepare_for_writing

DESCRIPTION = "量检查点的质量：留出的损失，写出的歌与真人的歌。"
SAMPLING = generation.Sampling()
FLAGS = [
    Flag("checkpoint", Path(constants.CHECKPOINT_DIR) / BEST, flags.path(), "检查点"),
    Flag("lyrics_dir", None, flags.path(optional=True), "歌词文件夹；不给则用检查点里记的"),
    Flag("cache_dir", None, flags.path(optional=True), "词元缓存文件夹；不给则用检查点里记的"),
    Flag("copy_index", Path(constants.CACHE_DIR) / "copies", flags.path(), "照抄索引；没有或过时就重建"),
    Flag("only", "all", flags.one_of("all", "loss", "songs", "index"), "只量一部分；all 是 loss 与 songs"),
    Flag("songs", 100, flags.whole(2, 100_000), "写几首"),
    Flag("seed", 0, flags.whole(0, 2**30), "随机种子；第 i 首用 seed + i"),
    Flag("temperature", SAMPLING.temperature, flags.between(0, 100), "温度"),
    Flag("top_p", SAMPLING.top_p, flags.SHARE, "核抽样"),
    Flag("max_tokens", SAMPLING.max_tokens, flags.whole(2), "一首最多写多少个词元；真人的歌也截在这里"),
    Flag("device", "auto", flags.text(), "auto、cpu、cuda、cuda:1、mps"),
    Flag("dtype", "fp32", flags.one_of(*WRITING_DTYPES), "精度"),
    Flag("json", None, flags.path(optional=True), "另存结果与写出的歌（JSON）"),
    Flag("plot", None, flags.path(optional=True), "另画损失曲线、行长与韵部的分布（PNG）"),
]
BATCH = 32  # 成批写歌、成批算困惑度时几首一批
LONGEST_BAR = 24  # 画行长时，再长的行都算在这里
CHINESE_FONTS = "Noto Sans CJK,Noto Sans SC,Source Han Sans,WenQuanYi,Microsoft YaHei,SimHei,PingFang,Heiti,Songti"


def main(argv: Sequence[str]) -> int:
    given = flags.parse_flags(FLAGS, argv, "evaluate.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    options |= {name: flags.rooted(options[name], name in given) for name in ("checkpoint", "copy_index")}
    check_outputs(options)
    began = time.monotonic()
    evaluation = load(options)
    parts = ("loss", "songs") if options["only"] == "all" else (options["only"],)
    rows = [row for part in parts for row in PARTS[part](evaluation)]
    if rows:
        print_table(rows)
    evaluation.display.line(f"用时 {duration(time.monotonic() - began)}")
    if options["json"] is not None:
        write_json(options["json"], evaluation, rows)
    if options["plot"] is not None:
        plot(options["plot"], options["checkpoint"].parent / METRICS, evaluation)
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


class Evaluation:
    """要量的模型与它的语料。

    Attributes:
        train, held_out: 训练与留出的歌。
        tokens: 量损失的词元流：留出的歌，各个子文件夹的比重与训练时相同。
        written: {名称: 写出的歌}，存进 JSON。
        distributions: {"模型"、"真人": (各行字数, 各行的辙)}，画图用。
    """

    def __init__(
        self, options: dict[str, Any], model: GPT, corpus: Corpus, tokens: np.ndarray, windows: int, display: Display
    ) -> None:
        self.options, self.model, self.corpus, self.windows, self.display = options, model, corpus, windows, display
        self.tokens = tokens
        self.tokenizer = corpus.tokenizer
        self.train = list(decode_songs(corpus.train, self.tokenizer))
        self.held_out = list(decode_songs(corpus.val, self.tokenizer))
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

    def copies(self) -> CopyIndex:
        """照抄索引；没有，或语料、分词器变了，就重建。"""
        folder, identity = self.options["copy_index"], f"{self.tokenizer.fingerprint} {self.corpus.fingerprint}"
        found = CopyIndex.load(folder, identity)
        if found is None:
            found = copying.build_index(folder, identity, self.train, self.held_out, self.display.progress)
            self.display.line(f"已建照抄索引 {folder}：{len(self.train) + len(self.held_out):,} 首")
        return found


def load(options: dict[str, Any]) -> Evaluation:
    """读检查点，备好语料：分词器与划分都照检查点的，从不重训分词器。"""
    display = Display(sys.stderr)
    device = pick_device(options["device"])
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
    machine = f"{device_name(device)} · {options['dtype']} · torch {torch.__version__}"
    options["about"] = f"{options['checkpoint']}（第 {contents['iter']} 步）· {machine}"
    display.line(options["about"])

    def setting(name: str) -> Any:
        """检查点记下的值；没有或不合规则时是 config.py 的。"""
        try:
            return flags.convert(stored[name], flags.RULES[name.upper()])
        except (KeyError, ValueError, TypeError, OverflowError):
            return getattr(constants, name.upper())

    def folder(name: str) -> Path:
        recorded = flags.REPOSITORY / setting(name)
        default = flags.REPOSITORY / getattr(constants, name.upper())
        if options[name] is None and not recorded.is_dir():
            display.line(f"检查点里记的 {name} {recorded} 不在，改用 {default}")
        return options[name] or (recorded if recorded.is_dir() else default)

    options |= {name: folder(name) for name in ("lyrics_dir", "cache_dir")}
    corpus = prepare(
        options["lyrics_dir"],
        options["cache_dir"],
        flags.REPOSITORY / f"{constants.BPE_MODEL_PREFIX}.model",  # 给了分词器，就不会动它
        setting("bpe_vocab_size"),
        setting("val_fraction"),
        tokenizer=tokenizer,
        say=display.line,
        progress=display.progress,
        outputs=(options["checkpoint"].parent, options["cache_dir"], flags.REPOSITORY / "swanlog"),
    )
    difference = corpus_difference(contents["corpus"], corpus.fingerprint)
    if difference:
        display.line(f"注意：{difference.format(options['lyrics_dir'])}，「留出」的歌可能训练过")
    weights = parse_weights(setting("lyrics_weights"))
    tokens = corpus.validation_tokens(weights if set(weights) <= set(corpus.report["folders"]) else {})
    return Evaluation(options, model, corpus, tokens, setting("eval_iters") * setting("batch_size"), display)


def corpus_difference(saved: Any, fingerprint: str) -> str:
    """检查点训练时的语料与现在的不同在哪里（{} 处填文件夹）；相同或检查点没有记是空的。"""
    if not isinstance(saved, dict):  # 早先的检查点：没有记，或与清洗的版本合在一个指纹里
        return "" if saved is None else "训练时的清洗规则与现在不同，{} 的划分或许也不同"
    if saved["files"] != fingerprint:
        return "{} 的内容与检查点训练时的不同"
    return "" if saved["cleaning"] == CLEANING_VERSION else "{} 的清洗规则与检查点训练时的不同"


def measure_loss(evaluation: Evaluation) -> list[Row]:
    """与 train.py 的 val_loss、val_bpc 同样的窗口与定义：比特/字的字含换行、歌名、歌手。"""
    characters = evaluation.tokenizer.token_characters
    parts = []
    for x, y in validation_batches(
        evaluation.tokens, evaluation.model.config.max_seq_len, BATCH, max(1, evaluation.windows)
    ):
        real = y != IGNORED
        parts.append((nats_of(evaluation.model, x, y), real.sum(axis=1), (characters[y] * real).sum(axis=1)))
        evaluation.display.progress(f"留出的损失：{sum(len(part[0]) for part in parts):,} 个窗口")
    columns = zip(("nats", "tokens", "characters"), zip(*parts, strict=True), strict=True)
    return rows_of(LOSS_METRICS, {"模型": {name: np.concatenate(column) for name, column in columns}})


def measure_songs(evaluation: Evaluation) -> list[Row]:
    """从留出的歌的首行写 songs 首（歌不够时，一个首行写几首），与那些歌原来的下文相比。"""
    count, tokenizer = evaluation.options["songs"], evaluation.tokenizer
    able = [song.text for song in evaluation.held_out if "\n" in song.text]
    if not able:
        raise UserError("留出的歌都只有一行，没有可比的下文")
    chosen = random.Random(evaluation.options["seed"]).sample(able, min(count, len(able)))
    sides: dict[str, list[tuple[list[str], bool]]] = {"模型": [], "真人": []}
    written = evaluation.written["songs"] = []
    for place, text in enumerate(chosen):
        first, _, rest = text.partition("\n")
        for song, ended in evaluation.write(first + "\n", len(range(place, count, len(chosen))), len(written)):
            written.append(first + "\n" + song)
            sides["模型"].append((whole_lines(song, ended), ended))
        tokens, most = tokenizer.encode(rest), evaluation.options["max_tokens"]
        ended = len(tokens) < most
        sides["真人"].append((whole_lines(tokenizer.decode(tokens[:most]), ended), ended))
    lines = {side: [line for song, _ in songs for line in song] for side, songs in sides.items()}
    evaluation.distributions = {
        side: ([sung_count(line) for line in some], [rhyme_class(line) for line in some])
        for side, some in lines.items()
    }
    wanted = {normalise(line) for some in lines.values() for line in some}
    known = wanted.intersection(normalise(line) for song in evaluation.train for line in song.text.split("\n"))
    copies = evaluation.copies()
    columns = {
        side: table_of([measure_song(song, ended, known, copies) for song, ended in songs])
        for side, songs in sides.items()
    }
    return rows_of(SONG_METRICS, columns)


def build_index(evaluation: Evaluation) -> list[Row]:
    evaluation.copies()
    evaluation.display.line(f"照抄索引可用：{evaluation.options['copy_index']}")
    return []


PARTS: dict[str, Callable[[Evaluation], list[Row]]] = {
    "loss": measure_loss,
    "songs": measure_songs,
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


def write_json(path: Path, evaluation: Evaluation, rows: Sequence[Row]) -> None:
    options = {name: str(value) if isinstance(value, Path) else value for name, value in evaluation.options.items()}
    results = {
        row.name: {side: [None if v is None or math.isnan(v) else v for v in cell] for side, cell in row.cells.items()}
        for row in rows
    }
    contents = {
        "options": options,
        "corpus": evaluation.corpus.fingerprint,
        "results": results,
        "songs": evaluation.written,
    }
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


def plot(path: Path, metrics: Path, evaluation: Evaluation) -> None:
    """损失曲线、行长与韵部的分布；没有中文字体时用英文。"""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    fonts = sorted({entry.name for entry in font_manager.fontManager.ttflist})
    chinese = next((font for known in CHINESE_FONTS.split(",") for font in fonts if font.startswith(known)), None)
    pyplot.rcParams |= {"font.family": [chinese or "DejaVu Sans"], "axes.unicode_minus": False}

    def label(chinese_text: str, english: str) -> str:
        return chinese_text if chinese else english

    sides = {side: label(side, {"模型": "model", "真人": "human"}[side]) for side in evaluation.distributions}
    figure, axes = pyplot.subplots(1, 3 if sides else 1, figsize=(15 if sides else 5, 4), squeeze=False)
    for name, points in loss_curves(metrics).items():
        if points:
            axes[0, 0].plot(
                *zip(*points, strict=True),
                label={"train_loss": label("训练", "train")}.get(name, label("验证", "held out")),
            )
    axes[0, 0].set(title=label("损失（nat/词元）", "loss (nats per token)"), xlabel=label("步", "step"))
    for place, (side, name) in enumerate(sides.items()):
        lengths, classes = evaluation.distributions[side]
        bars = (
            (1, np.bincount(np.minimum(np.array(lengths, int), LONGEST_BAR), minlength=LONGEST_BAR + 1)),
            (2, [classes.count(c) for c in RHYME_CLASSES]),
        )
        for column, counts in bars:
            heights = np.array(counts) / max(1, len(lengths))
            axes[0, column].bar(np.arange(len(heights)) + 0.4 * (place - 0.5), heights, 0.4, label=name)
    if sides:
        axes[0, 1].set(title=label("每行字数", "characters per line"))
        axes[0, 1].set_xticks(range(0, LONGEST_BAR + 1, 4), [*range(0, LONGEST_BAR, 4), f"≥{LONGEST_BAR}"])
        axes[0, 2].set(title=label("行末的辙", "rhyme class of the last character"))
        names = [label(name, finals.split()[0]) for name, finals in RHYME_CLASSES.items()]
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
    run_script(main, UserError, CorpusError, CheckpointError, TokenizerError, LyricsError, DeviceError)
