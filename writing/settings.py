"""写一首歌的设置：命令行与网页共用的名称、默认值、范围与说明。"""

from dataclasses import dataclass

import flags
import generation
from flags import Flag
from lyrics.form import Form, LyricsError, make_form
from lyrics.sound import RHYME_CLASSES

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
    Flag("candidates", 1, flags.whole(1, 256), "每行起几稿，取模型最看好而不重复的"),
    Flag("max_copy", 0, flags.whole(0, 1000), "与语料里任何一首连续相同不超过这么多字；0 为不查"),
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

    def form(self) -> Form:
        """句式；写法有误，或与词元数的要求冲突时 LyricsError。"""
        form = make_form(
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
