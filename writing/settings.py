"""写一首歌的设置：命令行与网页共用的名称、默认值、范围与说明。"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import flags
import generation
from flags import Flag
from lyrics.cipai import find_cipai
from lyrics.example import read_form
from lyrics.form import Form, LyricsError, check_rhyme, loosened, make_form, parse_keywords
from lyrics.notation import form_text, is_notation, parse_form
from lyrics.sound import RHYME_CLASSES
from writing.kernels import WRITING_DTYPES

DEFAULTS = generation.Sampling()
RHYMES = "；".join(f"{name} {finals}" for name, finals in RHYME_CLASSES.items())

SONG_FLAGS = [
    Flag(
        "max_tokens",
        None,
        flags.whole(1, optional=True),
        f"最多写多少个词元（约等于字数）；默认 {DEFAULTS.max_tokens}，定了行数时写到最后一行",
    ),
    Flag("min_tokens", DEFAULTS.min_tokens, flags.whole(0), "写满这么多个词元之前不收尾"),
    Flag("temperature", DEFAULTS.temperature, flags.between(0, 100), "温度：越高越出奇，0 为每步取最可能的"),
    Flag("top_p", DEFAULTS.top_p, flags.SHARE, "只在概率合计达到它的词元里抽"),
    Flag("top_k", DEFAULTS.top_k, flags.whole(0), "只在最可能的这么多个词元里抽；0 为不限"),
    Flag(
        "repetition_penalty",
        DEFAULTS.repetition_penalty,
        flags.between(0.1, 10),
        "大于 1 时少重复已写过的词元（换行除外）",
    ),
    Flag("num_samples", 1, flags.whole(1, 4096), "同时写几首"),
    Flag("seed", None, flags.whole(0, 2**31 - 1, optional=True), "随机种子；同样的种子写出同样的歌词，不给则随机"),
    Flag("title", None, flags.text(optional=True), "歌名（模型训练时见过「歌名 → 歌词」）"),
    Flag("singer", None, flags.text(optional=True), "歌手风格"),
    Flag("lines", None, flags.whole(1, 1000, optional=True), "写几行"),
    Flag(
        "line_chars",
        None,
        flags.text(optional=True),
        "每行几个字：7、5-9，或循环的 7,7,5,7；标点与空格不算，一个外文词算一个",
    ),
    Flag("rhyme", "none", flags.text(), f"押韵：none、auto（随第一个韵脚），或十三辙之一：{RHYMES}"),
    Flag(
        "rhyme_scheme",
        None,
        flags.text(optional=True),
        "韵式，循环使用，如 AABA、ABAB：同字母同韵，X 与只出现一次的不押；默认每行都押",
    ),
    Flag("acrostic", None, flags.text(optional=True), "藏头：第 i 行以第 i 个字开头"),
    Flag(
        "structure",
        None,
        flags.text(optional=True),
        "分段，如「主歌4 副歌4 主歌4 副歌」：段名加行数，不写行数的照搬前面同名的一段",
    ),
    Flag(
        "like",
        None,
        flags.path(optional=True),
        "照这首歌（或这份句式）的样子写：各节、字数、停顿、韵、回来的词；词是新的",
    ),
    Flag("keep_tones", False, flags.BOOLEAN, "--like 连平仄也照样例"),
    Flag("cipai", None, flags.text(optional=True), "照词牌写，如 如梦令；临江仙2 是第二体"),
    Flag(
        "breaks",
        None,
        flags.text(optional=True),
        "每行在哪里停，如 2-2-3：停在词与词之间；几行循环用半角逗号隔开，全角逗号是写出来的逗号：4，2-3",
    ),
    Flag(
        "tones",
        None,
        flags.text(optional=True),
        "每字的平仄（今音）：中平中仄仄平平；与 --like、--cipai 同用时是 strict（全守）、loose（守二四六与末字）",
    ),
    Flag("keywords", None, flags.text(optional=True), "每个词在歌里出现一次：雨,窗台；没有定行数时写八行"),
    Flag("candidates", 1, flags.whole(1, 256), "每行起几稿，取模型最看好而不重复的"),
    Flag("max_copy", 0, flags.whole(0, 1000), "与语料里任何一首连续相同不超过这么多字；0 为不查"),
]

GRAPHS = {"auto": None, "true": True, "false": False}

RUN_FLAGS = [
    Flag("show_form", False, flags.BOOLEAN, "只打印 --like、--cipai 的句式，改好了可以再给 --like"),
    Flag("device", "auto", flags.text(), "auto、cpu、cuda、cuda:1、mps"),
    Flag("dtype", "auto", flags.one_of("auto", *WRITING_DTYPES), "auto 取这台机器上最快的；int8 只用于 CPU"),
    Flag(
        "cuda_graph",
        "auto",
        flags.one_of(*GRAPHS),
        "CUDA 上把解码的一步录成图再重放；auto 在写得够长、批次不大时用",
    ),
    Flag("decode", "auto", flags.one_of("auto", "fused", "torch"), "CPU 上写的一步：fused 编译成一次调用，torch 照旧"),
    Flag("check_copy", False, flags.BOOLEAN, "写完之后，逐行说出与语料最长的相同处和出自哪一首"),
    Flag("stats", False, flags.BOOLEAN, "每写一次，向标准错误写一行 JSON：词元数、用时、速度、内存"),
]

STRICTNESS = ("strict", "loose")


def shown_form(form: Form) -> str:
    """给人看、也能给 --like 的句式。

    Raises:
        LyricsError: 不是从样例或词牌来的。
    """
    if not form.patterned:
        raise LyricsError("--show_form 要与 --like 或 --cipai 同用")
    return form_text(form)


def _read_example(like: Path | str | None, keep_tones: bool) -> Form:
    """--like 的文件，或样例的文字。

    Raises:
        LyricsError: 读不了，或写法有误。
    """
    assert like is not None
    if isinstance(like, str):
        return _parsed_text(like, keep_tones)
    try:
        return _parsed(like, like.stat().st_mtime_ns, keep_tones)
    except OSError as error:
        raise LyricsError(f"读不了 {like}：{error.strerror}") from None
    except UnicodeDecodeError:
        raise LyricsError(f"{like} 的编码有误：请另存为 UTF-8") from None


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, changed: int, keep_tones: bool) -> Form:
    """changed 是文件改动的时刻：改过的要重读。"""
    return _parsed_text(path.read_text(encoding="utf-8-sig"), keep_tones)


@functools.lru_cache(maxsize=8)
def _parsed_text(text: str, keep_tones: bool) -> Form:
    return parse_form(text) if is_notation(text) else read_form(text, keep_tones)


_GROUPS = {
    "写什么": "prompt title singer keywords like keep_tones cipai show_form lines max_tokens min_tokens num_samples",
    "句式": "line_chars breaks tones rhyme rhyme_scheme acrostic structure",
    "抽样": "temperature top_p top_k repetition_penalty seed candidates max_copy check_copy copy_index",
}


def grouped(every: list[Flag]) -> list[Flag]:
    """--help 里分的组；没有列的归「运行」。次序照组。"""
    group_of = {name: group for group, names in _GROUPS.items() for name in names.split()}
    put = [flag._replace(group=group_of.get(flag.name, "运行")) for flag in every]
    return sorted(put, key=lambda flag: [*_GROUPS, "运行"].index(flag.group))


@dataclass
class Settings:
    """写一首歌的设置；名称与命令行参数相同。

    like 是文件，或样例的文字（网页上的：请求里的路径从不去读）。
    """

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
    like: Path | str | None
    keep_tones: bool
    cipai: str | None
    breaks: str | None
    tones: str | None
    keywords: str | None
    candidates: int
    max_copy: int

    def form(self) -> Form:
        """句式；写法有误，或与词元数的要求冲突时 LyricsError。"""
        form = self._example_form() if self.like or self.cipai else self._made_form()
        if form.lines is not None and (self.max_tokens is not None or self.min_tokens):
            raise LyricsError(f"已定了写 {form.lines} 行，不能同时用 max_tokens、min_tokens 定长短；请去掉一样")
        return form

    def _made_form(self) -> Form:
        if self.tones in STRICTNESS:
            raise LyricsError(f"--tones {self.tones} 要与 --like 或 --cipai 同用；单用时写每字的平仄：中平中仄仄平平")
        if self.keep_tones:
            raise LyricsError("--keep_tones 要与 --like 同用：平仄照样例")
        return make_form(
            self.lines,
            self.line_chars,
            self.rhyme,
            self.rhyme_scheme,
            self.acrostic or "",
            self.structure,
            self.breaks,
            self.tones,
            self.keywords,
        )

    def _example_form(self) -> Form:
        """--like 或 --cipai 的句式，加上可以同用的几项。"""
        source = "--like" if self.like else "--cipai"
        if self.like and self.cipai:
            raise LyricsError("--like 与 --cipai 只能用一个")
        fixed = ("lines", "line_chars", "rhyme_scheme", "structure", "breaks")
        also = [f"--{name}" for name in fixed if getattr(self, name) is not None]
        if self.tones is not None and self.tones not in STRICTNESS:
            also.append("--tones 加平仄（可用 strict、loose）")
        if also:
            raise LyricsError(f"{source} 已定了各行的句式，不能同时用 {'、'.join(also)}；请去掉一样")
        if self.keep_tones and not self.like:
            raise LyricsError("--keep_tones 要与 --like 同用：词牌本来就有平仄")
        form = find_cipai(self.cipai).form if self.cipai else _read_example(self.like, self.keep_tones)
        if self.tones is not None and not any(line.tones for line in form.pattern):
            raise LyricsError(f"--tones {self.tones}：{source} 里没有平仄；从歌里读平仄，加 --keep_tones true")
        if self.keep_tones and not any(line.tones for line in form.pattern):
            raise LyricsError("--keep_tones：样例里没有平仄可照；请写在句式里，或去掉它")
        check_rhyme(self.rhyme)
        if self.rhyme != "none" and form.rhyme == "none":
            raise LyricsError(f"{source} 里没有押韵的行，不能用 --rhyme {self.rhyme}")
        acrostic = make_form(None, None, "none", None, self.acrostic or "", None).acrostic
        if len(acrostic) > len(form.pattern):
            raise LyricsError(f"藏头有 {len(acrostic)} 个字，{source} 却只有 {len(form.pattern)} 行")
        form = loosened(form) if self.tones == "loose" else form
        return dataclasses.replace(
            form,
            rhyme=form.rhyme if self.rhyme == "none" else self.rhyme,
            acrostic=acrostic,
            keywords=parse_keywords(self.keywords) if self.keywords else (),
        )

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
