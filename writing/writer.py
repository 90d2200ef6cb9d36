"""一首正在写的歌：设置、写、接着写、改一行、留住几行、查照抄。"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

import generation
from lyrics.constraint import LineRule
from lyrics.copies import CopyIndex
from lyrics.form import EXAMPLE_SPAN, LONGEST_LINE, Form, LyricsError
from lyrics.plan import SongPlan
from lyrics.rhymes import RhymeDictionary
from lyrics.sound import (
    lines_of,
    normalise,
    place_of,
    rhyme_class,
    stanzas_of,
    sung_count,
    sung_places,
    sung_units,
)
from lyrics.vocabulary import Vocabulary
from lyrics.words import one_each
from model import GPT
from tokenizer import StreamingDecoder, Tokenizer
from writing.cuda_graph import GraphPool, RecordedDraw, RecordedStep, worth_recording
from writing.decode import Decoder, fused_steps
from writing.drafts import Composer, Draft
from writing.settings import Settings

REWRITINGS = 5  # 改一行时给出几种写法

REWRITING_DRAFTS = 24  # 从几稿里挑

FOLLOWING_LINES = 2  # 改一行时，看它与后面几行接不接得上

Show = Callable[[str], None]  # 收新写出的文字


def _unheard(text: str) -> None:
    """几首一起写时，写到一半的不给人看。"""


def _no_index() -> CopyIndex:
    raise LyricsError("没有这个模型的语料索引；请先运行 python evaluate.py --only index")


@dataclass
class Song:
    """写出的一首。

    Attributes:
        tokens: 从 `<s>` 起的全部词元。
        text: 歌词正文，含开头。
        decoder: 这首歌的流式解码；停在半个字上时留着没到齐的字节，接着写时补全。
        ended: 是否由模型自己收尾（写出 `</s>`）。
        relaxed: 停顿没能收在认得的词上的各行，从 1 起。
    """

    tokens: list[int]
    text: str
    decoder: StreamingDecoder
    ended: bool = False
    relaxed: list[int] = field(default_factory=list)


class CheckedStep:
    """走一步之前先问一声还要不要写（`Step`）。"""

    def __init__(self, step: generation.Step, check: Callable[[], None]) -> None:
        self.step, self.check, self.keep_rows = step, check, step.keep_rows

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.check()
        return self.step(tokens)


class Writer:
    """模型与分词器：从开头写出歌词。"""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, copies: CopyIndex | None = None, decoder: Decoder | None = None
    ) -> None:
        self.model, self.tokenizer, self.copies = model, tokenizer, copies
        self.decoder = decoder  # 编译好的一步；没有就走 torch 的
        self.find_copies: Callable[[], CopyIndex] = _no_index  # 要查照抄而没有索引时，建一个
        self.cuda_graph: bool | None = None  # None：自定
        self.count: Callable[[int], None] = lambda tokens: None  # 每写出几个词元就调用一次
        self.check: Callable[[], None] | None = None  # 每走一步之前调用；它抛出的异常停下写作
        self.songs: list[Song] = []  # 最近写的；中途停下时是已写的部分

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer.token_bytes, self.tokenizer.newline_id, self.tokenizer.eos_id)

    @functools.cached_property
    def rhymes(self) -> RhymeDictionary:
        return RhymeDictionary(self.vocabulary)

    def require(self, settings: Settings, prompt: str = "") -> None:
        """写不成的，写之前先说。

        Raises:
            LyricsError: 句式与开头、词表不合，或要查照抄而没有索引。
        """
        if settings.max_copy and self.copies is None:
            self.copies = self.find_copies()
        if settings.line_by_line():
            self.plan(settings.form(), settings, prompt)

    def song_of(self, text: str, settings: Settings, ended: bool = True) -> Song:
        """别处来的文字，成为可以接着写的一首。"""
        song = self.start("", dataclasses.replace(settings, num_samples=1))[0]
        self.replace_text(song, text, settings)
        song.ended = ended
        return song

    def start(self, prompt: str, settings: Settings) -> list[Song]:
        tokens = self.tokenizer.song(prompt, settings.title or "", settings.singer or "")
        return [Song(list(tokens), prompt, StreamingDecoder(self.tokenizer)) for _ in range(settings.num_samples)]

    def write(self, prompt: str, settings: Settings, seed: int, show: Show) -> list[Song]:
        """从 prompt 写 num_samples 首；只写一首时，show 随写随收文字（不含 prompt）。"""
        self.songs = self.start(prompt, settings)
        if not settings.line_by_line():
            self._continue(self.songs, settings, seed, show)
            return self.songs
        for number, song in enumerate(self.songs):
            quiet = len(self.songs) > 1
            self.compose(song, settings, generation.song_seed(seed, number), _unheard if quiet else show)
        return self.songs

    def composer(self, tokens: Sequence[int], settings: Settings, seed: int) -> Composer:
        """前文是 tokens 的 Composer。"""
        tokenizer = self.tokenizer
        return Composer(
            self.model,
            tokens,
            settings.sampling(seed),
            ends=[tokenizer.newline_id, tokenizer.eos_id],
            banned_ids=tokenizer.never_written,
            refused_ids=tokenizer.control_characters,
            unpunished_ids=[tokenizer.newline_id],
            candidates=settings.candidates,
            make_step=self._make_step_by_line(settings.budget),
            draw=self._draw(),
        )

    def plan(
        self,
        form: Form,
        settings: Settings,
        prompt: str = "",
        fixed: dict[int, str] | None = None,
        readings: Mapping[int, str] | None = None,
    ) -> SongPlan:
        return SongPlan(
            form,
            self.vocabulary,
            self.tokenizer.encode,
            prompt,
            self.copies,
            settings.max_copy,
            fixed or {},
            readings=readings or {},
            min_tokens=settings.min_tokens,
        )

    def compose(
        self,
        song: Song,
        settings: Settings,
        seed: int,
        show: Show,
        form: Form | None = None,
        fixed: dict[int, str] | None = None,
        readings: Mapping[int, str] | None = None,
    ) -> None:
        """照句式接着 song 的开头，一行一行地写。

        Raises:
            LyricsError: 句式与开头或词表不合，或有一行写不出来。
        """
        form = form or settings.form()
        plan = self.plan(form, settings, song.text, fixed, readings)
        counted, limit = 0, settings.budget if form.lines is None else None
        try:
            for text in plan.write(self.composer(song.tokens, settings, seed), limit):
                song.text += text
                show(text)
                self.count(plan.tokens - counted)
                counted = plan.tokens
        finally:  # 中途停下的也能接着写
            self.replace_text(song, song.text, settings)
            song.ended = plan.ended
            song.relaxed = [index + 1 for index in plan.relaxed]

    def notices(self) -> Iterable[str]:
        """刚写的歌里没能全守住的，一首一句。"""
        for number, song in enumerate(self.songs, 1):
            if song.relaxed:
                which = f"第 {number} 首" if len(self.songs) > 1 else ""
                yield f"{which}第 {'、'.join(map(str, song.relaxed))} 行的停顿未必在词与词之间：放不下认得的词"

    def replace_text(self, song: Song, text: str, settings: Settings) -> None:
        """这首歌换成 text，词元随之重来。"""
        song.text, song.decoder, song.relaxed = text, StreamingDecoder(self.tokenizer), []
        song.tokens = self.tokenizer.song(text, settings.title or "", settings.singer or "")

    def replace_line(self, song: Song, number: int, line: str, settings: Settings) -> None:
        """第 number 行（从 1 起，空行不算）换成 line；句式里与它一字不差的各行也换。"""
        every = song.text.split("\n")
        for place in self.same_lines(song.text, number, settings):
            every[place_of(song.text, place)] = line
        self.replace_text(song, "\n".join(every), settings)

    def same_lines(self, text: str, number: int, settings: Settings) -> list[int]:
        """句式里要一字不差、现在也一字不差的各行（从 1 起）：第 number 行在前。"""
        lines, form = lines_of(text), settings.form()
        if form.lines is None:
            return [number]
        times = -(-len(lines) // form.lines)
        form = dataclasses.replace(
            form, lines=form.lines * times, sections=form.sections * times, acrostic="", keywords=()
        )
        twins = self.plan(form, settings).twins(number - 1)
        return [number, *(twin + 1 for twin in twins if twin < len(lines) and lines[twin] == lines[number - 1])]

    def write_the_rest(
        self,
        before: Song,
        locked: Collection[int],
        prompt: str,
        settings: Settings,
        seed: int,
        show: Show,
        readings: Mapping[int, str] | None = None,
    ) -> Song:
        """留住 before 的这些行（从 1 起），其余从 prompt 重写，行数不变。没有写完就仍是 before。

        Args:
            readings: 第几行（从 1 起）的末字，选定读作哪一辙。
        """
        lines = lines_of(before.text)
        form = dataclasses.replace(settings.form(), lines=len(lines))
        if not form.sections:
            form = dataclasses.replace(form, sections=stanzas_of(before.text))
        if not form.lengths and not form.pattern:
            form = dataclasses.replace(form, lengths=((1, max(LONGEST_LINE, *map(sung_count, lines))),))
        fixed = {number - 1: lines[number - 1] for number in locked}
        prompt = "" if 0 in fixed else prompt
        song = self.start(prompt, dataclasses.replace(settings, num_samples=1))[0]
        show(prompt)
        self.songs = [before]
        chosen = {number - 1: name for number, name in (readings or {}).items() if number in locked}
        self.compose(song, settings, seed, show, form, fixed, chosen)
        self.songs = [song]
        return song

    def rewritings(
        self, text: str, number: int, settings: Settings, seed: int, reading: str | None = None
    ) -> list[str]:
        """第 number 行（从 1 起）的另几种写法：同样的字数与韵，与前后的行接得上；好的在前。

        Args:
            reading: 这一行的末字，选定读作哪一辙。
        """
        lines = lines_of(text)
        index, old = number - 1, lines[number - 1]
        form = settings.form()
        plan = self.plan(Form(example=form.example), settings)
        for line in lines[:index]:
            plan.add(line)
        same = [one - 1 for one in self.same_lines(text, number, settings)]
        first = next((form.acrostic[place] for place in same if place < len(form.acrostic)), "")
        rule = _rewriting_rule(old, form, index, first, number == len(lines))
        if reading:
            rule = dataclasses.replace(rule, rhymes=frozenset({reading}))
        above = "".join(line + "\n" for line in text.split("\n")[: place_of(text, number)])
        header = self.tokenizer.song(above, settings.title or "", settings.singer or "")
        composer = self.composer(header, settings, seed)
        drafts = composer.drafts(lambda: plan.constraint(index, rule=rule), REWRITING_DRAFTS, rule.longest)
        after = lines[number:]
        used = {normalise(line) for line in lines}
        sung_after = normalise("".join(after))[: max(settings.max_copy, EXAMPLE_SPAN - 1 if form.example else 0)]
        options: dict[str, Draft] = {}
        for draft in drafts:
            sung = normalise(draft.constraint.text)
            kept = all(sung.count(word) == normalise(old).count(word) for word in form.keywords)
            if kept and sung not in used and not plan.copied(sung + sung_after, len(sung_after)):
                options.setdefault(draft.constraint.text, draft)
        if not options:
            return []
        until = place_of(text, min(len(lines), number + FOLLOWING_LINES)) + 1
        following = self.tokenizer.encode("\n".join(text.split("\n")[place_of(text, number) + 1 : until]))
        scores = composer.score([[*draft.tokens, *following] for draft in options.values()])
        return [text for _, text in sorted(zip(scores, options, strict=True), reverse=True)][:REWRITINGS]

    def copied_lines(self, text: str) -> Iterable[str]:
        """逐行：与语料最长的相同处，出自哪一首。"""
        for number, line in enumerate(lines_of(text), 1):
            same, label = self.longest_copy(line)
            if same:
                yield f"第 {number} 行 {len(same)} 字相同：「{same}」，{label}"
            else:
                yield f"第 {number} 行没有相同的字"

    def longest_copy(self, line: str) -> tuple[str, str]:
        """一行与语料最长的（相同处，出自哪一首）；没有的是空的。"""
        start, end, label = self.copied_span(line)
        return normalise(line[start:end]), label

    def copied_span(self, line: str) -> tuple[int, int, str]:
        """一行与语料最长的相同处：（从第几个字符起，到第几个之前，出自哪一首）；标点与空格夹在里面的也算。"""
        assert self.copies is not None  # 要查照抄时都先备好了索引
        span, places = self.copies.longest(normalise(line)), sung_places(line)
        if not span.length:
            return 0, 0, ""
        return places[span.start], places[span.start + span.length - 1] + 1, self.copies.label(span.song)

    def extend(
        self, song: Song, settings: Settings, seed: int, show: Show, readings: Mapping[int, str] | None = None
    ) -> None:
        """接着写一首；已收尾的另起一行。

        Args:
            readings: 第几行（从 1 起）的末字，选定读作哪一辙。
        """
        self.songs = [song]
        if settings.line_by_line():
            self._compose_more(song, settings, seed, show, readings or {})
            return
        if song.ended:
            song.tokens.append(self.tokenizer.newline_id)
            newline = song.decoder.push(self.tokenizer.newline_id)
            song.text += newline
            song.ended = False
            show(newline)
        self._continue(self.songs, settings, seed, show)

    def _compose_more(self, song: Song, settings: Settings, seed: int, show: Show, readings: Mapping[int, str]) -> None:
        """照同样的要求接着写：定了行数的再写一遍那么多行（没写完的先写完），韵与行长接着数，照抄、最少词元照守。"""
        form = settings.form()
        if form.lines is not None:
            times = len(lines_of(song.text)) // form.lines + 1
            form = dataclasses.replace(form, lines=form.lines * times, sections=form.sections * times)
        if song.text and (song.ended or form.given) and not song.text.endswith("\n"):
            song.text += "\n"
            show("\n")
        self.replace_text(song, song.text, settings)
        song.ended = False
        chosen = {number - 1: name for number, name in readings.items()}
        self.compose(song, settings, seed, show, form, readings=chosen)

    @property
    def device(self) -> torch.device:
        return self.model.embedding.weight.device

    def _make_step(self, tokens: int, songs: int) -> generation.MakeStep:
        if self.decoder is not None:
            return self._checked(fused_steps(self.decoder))
        graph = worth_recording(self.device, self.cuda_graph, tokens, songs)
        return self._checked(RecordedStep if graph else generation.TorchStep)

    def _checked(self, make: generation.MakeStep) -> generation.MakeStep:
        check = self.check
        return make if check is None else lambda model, cache: CheckedStep(make(model, cache), check)

    def _make_step_by_line(self, tokens: int) -> generation.MakeStep:
        if self.decoder is None and worth_recording(self.device, self.cuda_graph, tokens, 1):
            return self._checked(self._graphs)
        return self._make_step(0, 1)

    @functools.cached_property
    def _graphs(self) -> GraphPool:
        return GraphPool()

    def _draw(self) -> generation.Draw:
        graph = self.device.type == "cuda" and self.cuda_graph is not False
        return self._recorded_draw if graph else generation.draw

    @functools.cached_property
    def _recorded_draw(self) -> RecordedDraw:
        return RecordedDraw()

    def _continue(self, songs: list[Song], settings: Settings, seed: int, show: Show) -> None:
        before = [len(song.tokens) for song in songs]
        for step in generation.generate(
            self.model,
            list(songs[0].tokens),
            settings.sampling(seed),
            stop_id=self.tokenizer.eos_id,
            banned_ids=self.tokenizer.never_written,
            refused_ids=self.tokenizer.control_characters,
            unpunished_ids=[self.tokenizer.newline_id],
            num_samples=len(songs),
            make_step=self._make_step(settings.budget, len(songs)),
            draw=self._draw(),
        ):
            self.count(len(step))
            for row, token in step:
                songs[row].tokens.append(token)
                text = songs[row].decoder.push(token)
                songs[row].text += text
                if len(songs) == 1 and text:
                    show(text)
        for song, length in zip(songs, before, strict=True):
            song.ended = len(song.tokens) - length < settings.budget


def _rewriting_rule(old: str, form: Form, index: int, first: str, last: bool) -> LineRule:
    """改第 index 行的规矩：字数与韵照原来的 old，停顿、平仄与关键词照句式。"""
    rhyme, count, line = rhyme_class(old), max(1, sung_count(old)), form.line(index)
    rule = LineRule(count, count, frozenset({rhyme}) if rhyme else None, first, last)
    if not form.given:
        return rule
    if line.least == line.most == count:  # 写成之后改过设置的，只照字数
        rule = dataclasses.replace(rule, breaks=line.breaks, tones=line.tones)
    word = next((word for word in form.keywords if word in normalise(old)), None)
    place = one_each(sung_units(old)).find(word) if word else -1
    keyword = (place, word) if word and place >= 0 else None
    return dataclasses.replace(rule, avoided=form.keywords, keyword=keyword)
