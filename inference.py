"""写歌词：`python inference.py --prompt 今夜我`，或不带 --prompt 进入对话。

歌词写到标准输出，其余一切写到标准错误；标准输入不是终端时，每行一个开头，各写一首。
"""

import contextlib
import dataclasses
import difflib
import functools
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import checkpoint
import config as configuration
import generation
import lyrics
import runtime
from checkpoint import BEST, CheckpointError
from config import Flag, UserError
from lyrics import CopyIndex, LyricsError, SongPlan
from model import WRITING_DTYPES, WritingLinear, prepare_for_writing
from tokenizer import StreamingDecoder

DESCRIPTION = "用训练好的检查点写歌词。不带 --prompt 时进入对话；/help 查看对话里的命令。"
DEFAULTS = generation.Sampling()
RHYMES = "；".join(f"{name} {finals}" for name, finals in lyrics.RHYME_CLASSES.items())
REWRITINGS = 5  # /rewrite 给出几种写法
REWRITING_DRAFTS = 24  # 从几稿里挑
FOLLOWING_LINES = 2  # 改一行时，看它与后面几行接不接得上

SONG_FLAGS = [
    Flag(
        "max_tokens",
        None,
        configuration.whole(1, optional=True),
        f"最多写多少个词元（约等于字数）；默认 {DEFAULTS.max_tokens}，定了行数时写到最后一行",
    ),
    Flag("min_tokens", DEFAULTS.min_tokens, configuration.whole(0), "写满这么多个词元之前不收尾"),
    Flag(
        "temperature",
        DEFAULTS.temperature,
        configuration.between(0, 100),
        "温度：越高越出奇，0 为每步取最可能的",
    ),
    Flag(
        "top_p",
        DEFAULTS.top_p,
        configuration.number(lambda v: 0 < v <= 1, "大于 0、不超过 1 的数"),
        "只在概率合计达到它的词元里抽",
    ),
    Flag("top_k", DEFAULTS.top_k, configuration.whole(0), "只在最可能的这么多个词元里抽；0 为不限"),
    Flag(
        "repetition_penalty",
        DEFAULTS.repetition_penalty,
        configuration.between(0.1, 10),
        "大于 1 时少重复已写过的词元（换行除外）",
    ),
    Flag("num_samples", 1, configuration.whole(1, 4096), "同时写几首"),
    Flag(
        "seed", None, configuration.whole(0, 2**31 - 1, optional=True), "随机种子；同样的种子写出同样的歌词，不给则随机"
    ),
    Flag("title", None, configuration.text(optional=True), "歌名（模型训练时见过「歌名 → 歌词」）"),
    Flag("singer", None, configuration.text(optional=True), "歌手风格"),
    Flag("lines", None, configuration.whole(1, 1000, optional=True), "写几行"),
    Flag(
        "line_chars",
        None,
        configuration.text(optional=True),
        "每行几个字：7、5-9，或循环的 7,7,5,7；标点与空格不算，一个外文词算一个",
    ),
    Flag("rhyme", "none", configuration.text(), f"押韵：none、auto（随第一个韵脚），或十三辙之一：{RHYMES}"),
    Flag(
        "rhyme_scheme",
        None,
        configuration.text(optional=True),
        "韵式，循环使用，如 AABA、ABAB：同字母同韵，X 与只出现一次的不押；默认每行都押",
    ),
    Flag("acrostic", None, configuration.text(optional=True), "藏头：第 i 行以第 i 个字开头"),
    Flag(
        "structure",
        None,
        configuration.text(optional=True),
        "分段，如「主歌4 副歌4 主歌4 副歌」：段名加行数，不写行数的照搬前面同名的一段",
    ),
    Flag("candidates", 1, configuration.whole(1, 256), "每行起几稿，取模型最看好而不重复的"),
    Flag("max_copy", 0, configuration.whole(0, 1000), "与语料里任何一首连续相同不超过这么多字；0 为不查"),
]
GRAPHS = {"auto": None, "true": True, "false": False}
# 给了这些之一而没有开头，就从头写一首，不进入对话
WRITES_FROM_NOTHING = ("title", "singer", "lines", "acrostic", "structure")
FLAGS = [
    Flag(
        "checkpoint", Path(configuration.CHECKPOINT_DIR) / BEST, configuration.path(), "检查点；架构与分词器都从它读出"
    ),
    Flag("prompt", None, configuration.text(), "歌词的开头"),
    *SONG_FLAGS,
    Flag("device", "auto", configuration.text(), "auto、cpu、cuda、cuda:1、mps"),
    Flag("dtype", "auto", configuration.one_of("auto", *WRITING_DTYPES), "auto 取这台机器上最快的；int8 只用于 CPU"),
    Flag(
        "cuda_graph",
        "auto",
        configuration.one_of(*GRAPHS),
        "CUDA 上把解码的一步录成图再重放；auto 在写得够长、批次不大时用，守句式时不用",
    ),
    Flag("check_copy", False, configuration.BOOLEAN, "写完之后，逐行说出与语料最长的相同处和出自哪一首"),
    Flag(
        "copy_index",
        Path(configuration.CACHE_DIR) / "copies",
        configuration.path(),
        "语料的索引；python evaluate.py --only index 建立",
    ),
    Flag("stats", False, configuration.BOOLEAN, "每写一次，向标准错误写一行 JSON：词元数、用时、速度、内存"),
]


@dataclass
class Settings:
    """写一首歌的设置；名称与命令行参数相同。"""

    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    num_samples: int
    seed: int | None
    title: str | None
    singer: str | None
    lines: int | None
    line_chars: str | None
    rhyme: str
    rhyme_scheme: str | None
    acrostic: str | None
    structure: str | None
    candidates: int
    max_copy: int

    def form(self) -> lyrics.Form:
        """句式；写法有误，或与词元数的要求冲突时 LyricsError。"""
        form = lyrics.make_form(
            self.lines, self.line_chars, self.rhyme, self.rhyme_scheme, self.acrostic or "", self.structure
        )
        if form.lines is not None and (self.max_tokens is not None or self.min_tokens):
            raise LyricsError(f"已定了写 {form.lines} 行，不能同时用 max_tokens、min_tokens 定长短；请去掉一样")
        return form

    @property
    def budget(self) -> int:
        """没有定行数时最多写多少个词元。"""
        return self.max_tokens if self.max_tokens is not None else DEFAULTS.max_tokens

    def line_by_line(self) -> bool:
        """要不要一行一行地写。"""
        return self.form().given or self.candidates > 1 or self.max_copy > 0

    def sampling(self, seed: int) -> generation.Sampling:
        return generation.Sampling(
            max_tokens=self.budget,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=seed,
        )


@dataclass
class Song:
    """写出的一首。

    Attributes:
        tokens: 从 `<s>` 起的全部词元。
        text: 歌词正文，含开头。
        decoder: 这首歌的流式解码；停在半个字上时留着没到齐的字节，接着写时补全。
        ended: 是否由模型自己收尾（写出 `</s>`）。
    """

    tokens: list[int]
    text: str
    decoder: StreamingDecoder
    ended: bool = False


def main(argv: Sequence[str]) -> int:
    given = configuration.parse_flags(FLAGS, argv, "inference.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    settings = Settings(**{flag.name: options[flag.name] for flag in SONG_FLAGS})
    _check_text(*options.values())
    settings.form()
    places = {name: _rooted(options[name], name in given) for name in ("checkpoint", "copy_index")}
    writer = load_writer(places["checkpoint"], options["device"], options["dtype"], options["stats"])
    writer.open_copies(places["copy_index"], required=bool(settings.max_copy or options["check_copy"]))
    writer.check_copy = options["check_copy"]
    writer.use_graphs(options["cuda_graph"])
    try:
        terminal = sys.stdin is not None and sys.stdin.isatty()
        if options["prompt"] or any(options[name] is not None for name in WRITES_FROM_NOTHING):
            print_songs(writer, options["prompt"] or "", settings)
        elif terminal:
            Conversation(writer, settings).run()
        elif sys.stdin is not None:
            for line in _prompts_from_pipe():
                print_songs(writer, line, settings)
                print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    except RuntimeError as error:
        if not configuration.is_out_of_memory(error):
            raise
        raise UserError("内存或显存不足：请减小 --num_samples，显卡上也可用 --device cpu") from None
    except BrokenPipeError:  # 读我们输出的程序先走了，例如 head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # 退出时不再写一遍
        raise UserError(f"歌词写不出去：{error.strerror or error}") from None
    return 0


def _rooted(path: Path, typed: bool) -> Path:
    """命令行上的相对路径从当前文件夹算起，默认的从仓库算起。"""
    return (Path.cwd() if typed else configuration.REPOSITORY) / path


def fastest_dtype(device: torch.device) -> str:
    """这台机器上写得最快而又可靠的精度。

    有原生 bf16 的 CPU 上 int8 比 bf16 更快；样例模型的每字比特数只变差万分之一以内，所以 auto 可以选它。
    """
    half = runtime.native_half(device)
    if half is None:
        return "fp32"
    if device.type == "cpu" and WritingLinear(torch.eye(64), None, "int8").special:  # 这个 torch 有 int8 算子
        return "int8"
    return "bf16" if half == torch.bfloat16 else "fp16"


def load_writer(path: Path, device_name: str, dtype: str, stats: bool = False) -> "Writer":
    """读检查点，备好模型。

    Raises:
        CheckpointError, DeviceError: 见各自的说明；不在 CPU 上而要 int8 也是 DeviceError。
    """
    began = time.perf_counter()
    device = runtime.pick_device(device_name)
    if not path.is_file():
        raise CheckpointError(f"找不到检查点：{path}\n请先训练（python train.py），或用 --checkpoint 指明文件")
    contents = checkpoint.load(path)
    model, tokenizer = checkpoint.restore(contents, path)
    dtype, chosen = (fastest_dtype(device), "（auto 选定）") if dtype == "auto" else (dtype, "")
    if dtype == "int8" and device.type != "cpu":
        raise runtime.DeviceError(f"--dtype int8 只用于 CPU：{runtime.device_name(device)} 请用 bf16 或 fp16")
    model = prepare_for_writing(model.to(device), dtype)
    bpc = f"，验证 {contents['val_bpc']:.3f} 比特/字" if contents["val_bpc"] is not None else ""
    _tell(f"已载入 {path}（第 {contents['iter']} 步{bpc}）· {runtime.device_name(device)} · {dtype}{chosen}")
    return Writer(model, tokenizer, Stats(device, dtype, time.perf_counter() - began) if stats else None)


class Stats:
    """写一次的用时；`line` 给出一行 JSON。

    Args:
        load_s: 载入检查点、备好模型的秒数。
    """

    def __init__(self, device: torch.device, dtype: str, load_s: float) -> None:
        self.device, self.dtype, self.load_s = device, dtype, load_s

    def start(self) -> None:
        self.began, self.first, self.tokens, self.first_tokens = time.perf_counter(), None, 0, 0

    def count(self, tokens: int) -> None:
        """一步写出了 tokens 个词元。"""
        self.last = time.perf_counter()
        if self.first is None:
            self.first, self.first_tokens = self.last, tokens
        self.tokens += tokens

    def line(self) -> str:
        """tokens_per_s 只算第一步之后的解码；一步也没写成时，没有的项是 null。"""
        decoding = self.last - self.first if self.tokens > self.first_tokens else None
        memory = runtime.peak_memory_gb(self.device)
        values = {
            "tokens": self.tokens,
            "seconds": time.perf_counter() - self.began,
            "tokens_per_s": (self.tokens - self.first_tokens) / decoding if decoding else None,
            "first_token_s": self.first - self.began if self.first is not None else None,
            "load_s": self.load_s,
            "peak_memory_mb": memory * 1024 if memory is not None else None,
            "dtype": self.dtype,
        }
        return json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})


class Writer:
    """模型与分词器：从开头写出歌词。"""

    def __init__(self, model, tokenizer, stats: Stats | None = None) -> None:
        self.model, self.tokenizer, self.stats = model, tokenizer, stats
        self.copies: CopyIndex | None = None
        self.check_copy = False
        self.cuda_graph: bool | None = None
        self.songs: list[Song] = []  # 最近写的；中途停下时是已写的部分

    @functools.cached_property
    def vocabulary(self) -> lyrics.Vocabulary:
        return lyrics.Vocabulary(self.tokenizer.token_bytes, self.tokenizer.newline_id, self.tokenizer.eos_id)

    def open_copies(self, folder: Path, required: bool) -> None:
        """读语料的索引。

        Raises:
            UserError: 需要而没有，或是别的语料的。
        """
        self.copies = CopyIndex.load(folder, self.tokenizer.fingerprint)
        if required and self.copies is None:
            raise UserError(
                f"没有这个模型的语料索引：{folder}\n请先运行 python evaluate.py --only index --checkpoint 检查点"
            )

    def use_graphs(self, choice: str) -> None:
        """用不用 CUDA 图：auto、true 或 false。

        Raises:
            DeviceError: 不在 CUDA 上而要用。
        """
        self.cuda_graph = GRAPHS[choice]
        device = self.model.embedding.weight.device
        if self.cuda_graph and device.type != "cuda":
            raise runtime.DeviceError(f"--cuda_graph true 只用于 CUDA，这里是 {runtime.device_name(device)}")

    def start(self, prompt: str, settings: Settings) -> list[Song]:
        tokens = self.tokenizer.song(prompt, settings.title or "", settings.singer or "")
        return [Song(list(tokens), prompt, StreamingDecoder(self.tokenizer)) for _ in range(settings.num_samples)]

    def write(self, prompt: str, settings: Settings, seed: int, show: Callable[[str], None]) -> list[Song]:
        """从 prompt 写 num_samples 首；只写一首时，show 随写随收文字（不含 prompt）。"""
        self.songs = self.start(prompt, settings)
        if not settings.line_by_line():
            self._continue(self.songs, settings, seed, show)
            return self.songs
        if self.stats is not None:
            self.stats.start()
        for number, song in enumerate(self.songs):
            self.compose(
                song, settings, generation.song_seed(seed, number), show if len(self.songs) == 1 else lambda text: None
            )
        return self.songs

    def composer(self, tokens: Sequence[int], settings: Settings, seed: int) -> generation.Composer:
        """前文是 tokens 的 Composer。"""
        tokenizer = self.tokenizer
        return generation.Composer(
            self.model,
            tokens,
            settings.sampling(seed),
            ends=[tokenizer.newline_id, tokenizer.eos_id],
            banned_ids=tokenizer.never_written,
            refused_ids=tokenizer.control_characters,
            unpunished_ids=[tokenizer.newline_id],
            candidates=settings.candidates,
        )

    def plan(
        self, form: lyrics.Form, settings: Settings, prompt: str = "", fixed: dict[int, str] | None = None
    ) -> SongPlan:
        return SongPlan(
            form,
            self.vocabulary,
            self.tokenizer.encode,
            prompt,
            self.copies,
            settings.max_copy,
            fixed or {},
            min_tokens=settings.min_tokens,
        )

    def compose(
        self,
        song: Song,
        settings: Settings,
        seed: int,
        show: Callable[[str], None],
        form: lyrics.Form | None = None,
        fixed: dict[int, str] | None = None,
    ) -> None:
        """照句式接着 song 的开头，一行一行地写。

        Raises:
            LyricsError: 句式与开头或词表不合，或有一行写不出来。
        """
        form = form or settings.form()
        plan = self.plan(form, settings, song.text, fixed)
        counted, limit = 0, settings.budget if form.lines is None else None
        try:
            for text in plan.write(self.composer(song.tokens, settings, seed), limit):
                song.text += text
                show(text)
                if self.stats is not None:
                    self.stats.count(plan.tokens - counted)
                    counted = plan.tokens
        finally:  # 中途停下的也能接着写
            self.replace_text(song, song.text, settings)
            song.ended = plan.ended

    def replace_text(self, song: Song, text: str, settings: Settings) -> None:
        """这首歌换成 text，词元随之重来。"""
        song.text, song.decoder = text, StreamingDecoder(self.tokenizer)
        song.tokens = self.tokenizer.song(text, settings.title or "", settings.singer or "")

    def rewritings(self, text: str, number: int, settings: Settings, seed: int) -> list[str]:
        """第 number 行（从 1 起）的另几种写法：同样的字数与韵，与前后的行接得上；好的在前。"""
        lines = lyrics.lines_of(text)
        index, old = number - 1, lines[number - 1]
        plan = self.plan(lyrics.Form(), settings)
        for line in lines[:index]:
            plan.add(line)
        rhyme, count = lyrics.rhyme_class(old), max(1, lyrics.sung_count(old))
        rule = lyrics.LineRule(
            count,
            count,
            frozenset({rhyme}) if rhyme else None,
            (settings.acrostic or "")[index:number],
            number == len(lines),
        )
        header = self.tokenizer.song(
            "".join(line + "\n" for line in lines[:index]), settings.title or "", settings.singer or ""
        )
        composer = self.composer(header, settings, seed)
        drafts = composer.drafts(lambda: plan.constraint(index, rule=rule), REWRITING_DRAFTS, rule.longest)
        after = lines[number:]
        used = {lyrics.normalise(line) for line in lines}
        sung_after = lyrics.normalise("".join(after))[: settings.max_copy]
        options: dict[str, generation.Draft] = {}
        for draft in drafts:
            sung = lyrics.normalise(draft.constraint.text)
            if sung not in used and not plan.copied(sung + sung_after, len(sung_after)):
                options.setdefault(draft.constraint.text, draft)
        if not options:
            return []
        following = self.tokenizer.encode("\n".join(after[:FOLLOWING_LINES])) if after else []
        scores = composer.score([[*draft.tokens, *following] for draft in options.values()])
        return [text for _, text in sorted(zip(scores, options, strict=True), reverse=True)][:REWRITINGS]

    def copied_lines(self, text: str) -> Iterable[str]:
        """逐行：与语料最长的相同处，出自哪一首。"""
        for number, line in enumerate(lyrics.lines_of(text), 1):
            sung = lyrics.normalise(line)
            span = self.copies.longest(sung)
            if span.length:
                same = sung[span.start : span.start + span.length]
                yield f"第 {number} 行 {span.length} 字相同：「{same}」，{self.copies.label(span.song)}"
            else:
                yield f"第 {number} 行没有相同的字"

    def extend(self, song: Song, settings: Settings, seed: int, show: Callable[[str], None]) -> None:
        """接着写一首；已收尾的另起一行。"""
        self.songs = [song]
        if settings.line_by_line():
            self._compose_more(song, settings, seed, show)
            return
        if song.ended:
            song.tokens.append(self.tokenizer.newline_id)
            newline = song.decoder.push(self.tokenizer.newline_id)
            song.text += newline
            song.ended = False
            show(newline)
        self._continue(self.songs, settings, seed, show)

    def _compose_more(self, song: Song, settings: Settings, seed: int, show: Callable[[str], None]) -> None:
        """照同样的要求接着写：定了行数的再写一遍那么多行（没写完的先写完），韵与行长接着数，照抄、最少词元照守。"""
        form = settings.form()
        if form.lines is not None:
            times = len(lyrics.lines_of(song.text)) // form.lines + 1
            form = dataclasses.replace(form, lines=form.lines * times, sections=form.sections * times)
        if self.stats is not None:
            self.stats.start()
        if song.text and (song.ended or form.given) and not song.text.endswith("\n"):
            song.text += "\n"
            show("\n")
        self.replace_text(song, song.text, settings)
        song.ended = False
        self.compose(song, settings, seed, show, form)

    def _continue(self, songs: list[Song], settings: Settings, seed: int, show: Callable[[str], None]) -> None:
        before = [len(song.tokens) for song in songs]
        if self.stats is not None:
            self.stats.start()
        for step in generation.generate(
            self.model,
            list(songs[0].tokens),
            settings.sampling(seed),
            stop_id=self.tokenizer.eos_id,
            banned_ids=self.tokenizer.never_written,
            refused_ids=self.tokenizer.control_characters,
            unpunished_ids=[self.tokenizer.newline_id],
            num_samples=len(songs),
            cuda_graph=self.cuda_graph,
        ):
            if self.stats is not None:
                self.stats.count(len(step))
            for row, token in step:
                songs[row].tokens.append(token)
                text = songs[row].decoder.push(token)
                songs[row].text += text
                if len(songs) == 1 and text:
                    show(text)
        for song, length in zip(songs, before, strict=True):
            song.ended = len(song.tokens) - length < settings.budget

    def tell_more(self) -> None:
        """写完之后，照要求说的：与语料的相同处、用时。"""
        if self.check_copy:
            for number, song in enumerate(self.songs, 1):
                if len(self.songs) > 1:
                    _tell(f"── 第 {number} 首 ──")
                for line in self.copied_lines(song.text):
                    _tell(line)
        if self.stats is not None:
            _tell(self.stats.line())


def print_songs(writer: Writer, prompt: str, settings: Settings) -> None:
    """写好的歌送到标准输出：一首时边写边送，几首时写完再依次送。"""
    seed = settings.seed if settings.seed is not None else secrets.randbelow(2**31 - 1)
    if settings.line_by_line():
        writer.plan(settings.form(), settings, prompt)  # 写不成的，先说再写
    _tell(f"种子 {seed}")
    if settings.num_samples == 1:
        _show(prompt)
        writer.write(prompt, settings, seed, _show)
        print(flush=True)
        writer.tell_more()
        return
    writer.write(prompt, settings, seed, _show)
    for number, song in enumerate(writer.songs, 1):
        if number > 1:
            print()
        sys.stdout.flush()
        _tell(f"── 第 {number} 首 ──")
        print(song.text, flush=True)
    writer.tell_more()


# ---------------------------------------------------------------------------
# 对话
# ---------------------------------------------------------------------------

HELP = """输入歌词的开头，回车开始写；Ctrl-C 停下这一首，Ctrl-D 离开。
  /again            用同样的开头另写一首
  /more             接着往下写
  /rewrite 3        另给第 3 行五种写法（同样的字数与韵，与前后相接），选一种换上
  /lock 1-4         留住这些行，/again 只重写其余；/lock none 放开
  /rhymes 月        与这个字同韵的常用字
  /set              查看设置；/set temperature 0.8 改一项（none 表示不用）
  /save 文件        把刚写的歌词添到文件末尾
  /help             本说明
  /quit             离开"""


class Conversation:
    """对话：一次载入，反复写。"""

    def __init__(self, writer: Writer, settings: Settings) -> None:
        self.writer, self.settings = writer, settings
        self.prompt: str | None = None
        self.locked: set[int] = set()  # 留住的行，从 1 起
        self.rewritings = 0
        self.commands = {
            "/again": self.again,
            "/more": self.more,
            "/rewrite": self.rewrite,
            "/lock": self.lock,
            "/rhymes": self.rhymes,
            "/set": self.set,
            "/save": self.save,
            "/help": lambda _: _tell(HELP),
        }

    def run(self) -> None:
        with contextlib.suppress(ImportError):  # 行编辑与历史；Windows 上没有
            import readline  # noqa: F401
        _tell("输入歌词的开头，回车开始写；/help 查看命令，Ctrl-D 离开。")
        while True:
            try:
                line = _read_line("歌词> ").strip()
            except KeyboardInterrupt:
                _tell("")
                continue
            except EOFError:
                _tell("")
                return
            if line.split()[:1] == ["/quit"]:
                return
            try:
                self.answer(line)
            except KeyboardInterrupt:
                if len(self.writer.songs) > 1:  # 几首同时写时，写到哪里还没有显示
                    print("\n\n".join(song.text for song in self.writer.songs))
                print(flush=True)
                _tell("（已停下；/more 接着写）")
            except EOFError:  # 在第二个提问处按了 Ctrl-D
                _tell("\n（没有改动）")
            except RuntimeError as error:
                if not configuration.is_out_of_memory(error):
                    raise
                _tell("内存或显存不足，没有写完；这首歌还在，可减小 num_samples 再试")
            except (UserError, LyricsError) as error:
                _tell(str(error))

    def answer(self, line: str) -> None:
        """一行输入：命令，或歌词的开头。"""
        if not line:
            return
        if not line.startswith("/"):
            _check_text(line)
            self.prompt, self.locked = line, set()
            self._write(self._seed())
            return
        name, _, argument = line.partition(" ")
        if name not in self.commands:
            near = difflib.get_close_matches(name, [*self.commands, "/quit"], n=1, cutoff=0.5)
            raise UserError(f"没有命令 {name}" + (f"，是否指 {near[0]}？" if near else "；/help 查看全部命令"))
        self.commands[name](argument.strip())

    def again(self, _: str) -> None:
        if self.prompt is None:
            raise UserError("还没有写过；先输入一个开头")
        if self.settings.seed is not None:  # 固定的种子也要换一首
            self.settings.seed = (self.settings.seed + self.settings.num_samples) % 2**31
        if self.locked:
            self._write_the_rest()
        else:
            self._write(self._seed())

    def _write_the_rest(self) -> None:
        """留住的行不动，其余重写，行数不变。"""
        before = self._song()
        lines = lyrics.lines_of(before.text)
        form = dataclasses.replace(self.settings.form(), lines=len(lines))
        if not form.lengths:
            longest = max(lyrics.LONGEST_LINE, *map(lyrics.sung_count, lines))
            form = dataclasses.replace(form, lengths=((1, longest),))
        fixed = {number - 1: lines[number - 1] for number in self.locked}
        prompt = "" if 0 in fixed else self.prompt
        song = self.writer.start(prompt, dataclasses.replace(self.settings, num_samples=1))[0]
        self.writer.songs = [song]
        _show(prompt)
        try:
            self.writer.compose(song, self.settings, self._seed(), _show, form, fixed)
        except BaseException:  # 没写完的不算：留住的行还在原来那首里
            self.writer.songs = [before]
            _tell("\n（没有写完，仍是原来那首）")
            raise
        print(flush=True)
        self.writer.tell_more()

    def rewrite(self, argument: str) -> None:
        song = self._song()
        lines = lyrics.lines_of(song.text)
        numbers = _line_numbers(argument, len(lines)) if argument else set()
        if len(numbers) != 1:
            raise UserError("一次改一行，例如 /rewrite 3")
        place = numbers.pop()
        self.rewritings += 1  # 固定的种子也要给出别的写法
        seed = (self._seed() + self.rewritings) % 2**31
        options = self.writer.rewritings(song.text, place, self.settings, seed)
        if not options:
            raise UserError(f"第 {place} 行没有写出别的，可再试一次或放宽 /set max_copy")
        _tell(f"第 {place} 行原是：{lines[place - 1]}")
        for choice, option in enumerate(options, 1):
            _tell(f"  {choice}  {option}")
        picked = _read_line("用第几种（回车不换）> ").strip()
        if not picked:
            return
        if not picked.isdecimal() or not 1 <= int(picked) <= len(options):
            raise UserError(f"没有第 {picked} 种，没有改动")
        every = song.text.split("\n")
        position = [index for index, line in enumerate(every) if line.strip()][place - 1]
        every[position] = options[int(picked) - 1]
        self.writer.replace_text(song, "\n".join(every), self.settings)
        print(song.text, flush=True)

    def lock(self, argument: str) -> None:
        lines = lyrics.lines_of(self._song().text)
        if argument == "none":
            self.locked = set()
        elif argument:
            self.locked |= _line_numbers(argument, len(lines))
        shown = "、".join(map(str, sorted(self.locked)))
        _tell(f"留住第 {shown} 行；/again 重写其余" if shown else "没有留住的行")

    def rhymes(self, argument: str) -> None:
        name = lyrics.rhyme_class(argument)
        if name is None:
            raise UserError("请给一个汉字，例如 /rhymes 月")
        found = self.writer.vocabulary.rhyming(name)
        _tell(f"{name}辙，常用的在前：\n{' '.join(found[:120])}")

    def _song(self) -> Song:
        """最近写的一首。"""
        if not self.writer.songs:
            raise UserError("还没有写过；先输入一个开头")
        return self.writer.songs[-1]

    def more(self, _: str) -> None:
        song = self._song()
        self.locked = set()
        self.writer.extend(song, self.settings, self._seed(), _show)
        print(flush=True)
        self.writer.tell_more()
        self._tell_if_cut()

    def set(self, argument: str) -> None:
        flags = {flag.name: flag for flag in SONG_FLAGS}
        if not argument:
            for name, value in dataclasses.asdict(self.settings).items():
                _tell(f"  {name:<20}{'none' if value is None else value}")
            return
        name, _, value = argument.partition(" ")
        name = name.lstrip("-")
        if name not in flags:
            near = difflib.get_close_matches(name, flags, n=1)
            raise UserError(f"没有设置 {name}" + (f"，是否指 {near[0]}？" if near else "；/set 查看全部设置"))
        found = configuration.parse_flags([flags[name]], [f"--{name}={value.strip()}"], "inference.py", "")
        _check_text(found[name])
        changed = dataclasses.replace(self.settings, **{name: found[name]})
        changed.form()
        if changed.max_copy and self.writer.copies is None:
            raise UserError("没有这个模型的语料索引；请先运行 python evaluate.py --only index")
        self.settings = changed
        _tell(f"{name} = {'none' if found[name] is None else found[name]}")

    def save(self, argument: str) -> None:
        if not argument:
            raise UserError("请写明文件，例如 /save 我的歌.txt")
        if not self.writer.songs:
            raise UserError("还没有可保存的歌词")
        path = Path(argument).expanduser()
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n\n".join(song.text for song in self.writer.songs) + "\n\n")
        except OSError as error:
            raise UserError(f"写不进 {path}：{error.strerror}") from None
        _tell(f"已添到 {path} 末尾")

    def _seed(self) -> int:
        return self.settings.seed if self.settings.seed is not None else secrets.randbelow(2**31 - 1)

    def _write(self, seed: int) -> None:
        print_songs(self.writer, self.prompt, dataclasses.replace(self.settings, seed=seed))
        self._tell_if_cut()

    def _tell_if_cut(self) -> None:
        if not all(song.ended for song in self.writer.songs):
            _tell(f"（写满 {self.settings.budget} 个词元；/more 接着写）")


# ---------------------------------------------------------------------------
# 输入与输出
# ---------------------------------------------------------------------------


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)  # 标准输出只有歌词
    return input()


def _prompts_from_pipe() -> Iterable[str]:
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            try:
                line = raw.decode("gb18030")  # 中文 Windows 的管道
            except UnicodeDecodeError:
                raise UserError(f"标准输入第 {number} 行的编码有误：请用 UTF-8") from None
        if line.strip():
            yield line.strip()


def _line_numbers(text: str, count: int) -> set[int]:
    """`1-4` 或 `1,3` → 行号，从 1 起。"""
    numbers: set[int] = set()
    for part in text.replace("，", ",").split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise UserError(f"行号应是 3、1-4 或 1,3 这样：{text}")
        if not 1 <= int(first) <= int(last or first) <= count:
            raise UserError(f"这首有 {count} 行，没有第 {part.strip()} 行")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _check_text(*texts: Any) -> None:
    """命令行或终端里编码有误的文字会带孤立代理项，分词器不收。"""
    for text in texts:
        if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError("文字的编码有误：请用 UTF-8 的终端输入")


if __name__ == "__main__":
    configuration.run_script(main, UserError, CheckpointError, LyricsError, runtime.DeviceError)
