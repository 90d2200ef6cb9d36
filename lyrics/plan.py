"""照句式一行一行地写一首歌。"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lyrics.constraint import ANY_LINE, LONGEST_LINE, LineConstraint, LineRule, Vocabulary
from lyrics.form import Form, LyricsError, _laid_out
from lyrics.sound import RHYME_CLASSES, normalise, rhyme_class, sung_count

SHOWN = 30  # 消息里最多引一行的这么多字


@dataclass
class SongPlan:
    """照句式写一首歌，记着写到哪里、各个韵脚是哪一辙。

    Args:
        prompt: 歌的开头；完整的行算作已写的行，最后半行接着写。
        encode: 文字 → 词元。
        copies: 语料的索引；None 表示不查照抄。
        max_copy: 与语料中任何一首连续相同的字不超过这么多（可唱的字，跨行也算）；0 为不限。
        fixed: 第 i 行（从 0 起）已定的文字，写到那里照搬。

    Attributes:
        lines: 写好的各行。
        tokens: 新写了多少个词元。
        min_tokens: 没有定行数时，写满这么多个词元之前不收尾。
        ended: 是否写到了头（写满行数，或模型收尾）。

    Raises:
        LyricsError: 句式与词表、开头不合，或有一行写不出来。
    """

    form: Form
    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    prompt: str = ""
    copies: Any = None
    max_copy: int = 0
    fixed: dict[int, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    tokens: int = 0
    ended: bool = False
    min_tokens: int = 0

    def __post_init__(self) -> None:
        self.vocabulary.check(self.form)
        self._classes: dict[str, str] = {}
        if self.form.rhyme in RHYME_CLASSES:
            self._classes[self._main_letter] = self.form.rhyme
        self._sung = ""
        self._sections = _laid_out(self.form.sections)
        *whole, self._start = self.prompt.split("\n")
        whole = [line for line in whole if line.strip()]
        for line in whole:
            self.add(line)
        self._given = len(whole)
        if not self.form.given:
            return
        if self.form.lines is not None and len(whole) + bool(self._start) > self.form.lines:
            raise LyricsError(f"开头已有 {len(whole) + bool(self._start)} 行，却只写 {self.form.lines} 行")
        for index, line in enumerate(self.lines + [self._start] * bool(self._start)):
            first = self.form.acrostic[index : index + 1]
            if not line.startswith(first):
                raise LyricsError(f"开头的第 {index + 1} 行「{line[:SHOWN]}」不以藏头的「{first}」开始")
        most = self.rule(len(whole)).most
        if self._start and sung_count(self._start) > most:
            raise LyricsError(f"开头的最后一行「{self._start[:SHOWN]}」已超过这一行的 {most} 个字")

    def rule(self, index: int) -> LineRule:
        """第 index 行（从 0 起）的规矩。"""
        form = self.form
        if not form.given:
            return ANY_LINE if self.tokens >= self.min_tokens else dataclasses.replace(ANY_LINE, ends_song=False)
        least, most = form.lengths[index % len(form.lengths)] if form.lengths else (1, LONGEST_LINE)
        last = self.tokens >= self.min_tokens if form.lines is None else index + 1 == form.lines
        return LineRule(least, most, self._rhymes(index), form.acrostic[index : index + 1], last)

    def add(self, line: str) -> None:
        """记下写好的一行。"""
        letter = self._letter(len(self.lines))
        self.lines.append(line)
        self._sung += normalise(line)
        if letter and self._binds(letter) and letter not in self._classes:
            found = rhyme_class(line)
            if found is not None:
                self._classes[letter] = found

    def write(self, composer: Any, max_tokens: int | None = None) -> Iterator[str]:
        """写到最后一行（或模型收尾、写满 max_tokens 个词元），逐行给出接在开头之后的文字。

        Args:
            composer: `Composer`，前文是这首歌的开头。
            max_tokens: 没有句式时必须给出。
        """
        start = self._start
        while (index := len(self.lines)) != self.form.lines and (max_tokens is None or self.tokens < max_tokens):
            new_line = "" if index == self._given else "\n"
            if index != self._given and self._opens_section(index):
                composer.feed([self.vocabulary.newline_id])
                new_line += "\n"
            given = self._known(index)
            if given is not None:
                composer.feed([*self.encode(given[len(start) :]), self.vocabulary.newline_id])
                text = given
            else:
                following = self.encode(self.fixed[index + 1]) if index + 1 in self.fixed else ()
                new = functools.partial(self.constraint, index, start)
                longest = max_tokens - self.tokens if max_tokens and not self.form.given else self.rule(index).longest
                draft = composer.line(new, longest, self._repeats, following, may_cut=not self.form.given)
                if draft is None:
                    raise LyricsError(
                        f"第 {index + 1} 行写不出来：照行长、韵脚、藏头与 --max_copy 没有可用的字；请放宽一项"
                    )
                text = draft.constraint.text
                self.tokens += len(draft.tokens)
                self.ended = draft.constraint.song_ended
                if not text and not self.ended:  # 空的一行是分节，不算一行
                    yield "\n"
                    continue
            self.add(text)
            yield new_line + text[len(start) :]
            start = ""
            if self.ended:
                return
        self.ended = self.form.lines is not None

    def constraint(self, index: int, start: str = "", rule: LineRule | None = None) -> LineConstraint:
        """写第 index 行的新约束；rule 可换掉句式里的规矩。"""
        return LineConstraint(self.vocabulary, rule or self.rule(index), start, self.copied, self._following(index))

    def copied(self, line: str, new: int) -> bool:
        """写好的行再接上 line（可唱的字），末尾 new 个字里有没有哪一个使照抄超过 max_copy。"""
        if not self.max_copy:
            return False
        span = self.max_copy + 1
        text = (self._sung + line)[-(self.max_copy + new) :]
        ends = range(max(span, len(text) - new + 1), len(text) + 1)
        return any(self.copies.contains(text[end - span : end]) for end in ends)

    def _repeats(self, draft: Any) -> bool:
        return normalise(draft.constraint.text) in {normalise(line) for line in self.lines}

    def _letter(self, index: int) -> str | None:
        """第 index 行在韵式里的字母；不押的是 None。"""
        if self.form.rhyme == "none":
            return None
        place = index - next((start for start, length, _ in self._spans() if start <= index < start + length), 0)
        letter = self.form.scheme[place % len(self.form.scheme)]
        return None if letter == "X" else letter

    @property
    def _main_letter(self) -> str:
        """--rhyme 说的是这个字母的韵：第一个出现不止一次的；都只出现一次时是第一个。"""
        letters = self.form.scheme.replace("X", "")
        return next((letter for letter in letters if letters.count(letter) > 1), letters[:1])

    def _binds(self, letter: str) -> bool:
        return self.form.scheme.count(letter) > 1 or letter == self._main_letter

    def _rhymes(self, index: int) -> frozenset[str | None] | None:
        letter = self._letter(index)
        if letter is None:
            return None
        if letter in self._classes:
            return frozenset({self._classes[letter]})
        free = frozenset(RHYME_CLASSES) - set(self._classes.values())
        return free if self._binds(letter) else free | {None}

    def _spans(self) -> list[tuple[int, int, str]]:
        """各段的（首行，行数，名称）。"""
        spans, start = [], 0
        for name, count in self._sections:
            spans.append((start, count, name))
            start += count
        return spans

    def _opens_section(self, index: int) -> bool:
        return any(start == index for start, _, _ in self._spans())

    def _known(self, index: int) -> str | None:
        """不必写的一行：已定的，或重复的段落照搬前面最近的同名一段。"""
        if index in self.fixed:
            return self.fixed[index]
        spans = self._spans()
        for place, (start, length, name) in enumerate(spans):
            if start <= index < start + length and self.form.sections[place][1] == 0:
                source = next(begin for begin, _, earlier in reversed(spans[:place]) if earlier == name) + index - start
                return self.lines[source] if source < len(self.lines) else None
        return None

    def _following(self, index: int) -> str:
        """紧接在第 index 行之后的已定的行里，开头 max_copy 个可唱的字。"""
        sung = ""
        while len(sung) < self.max_copy and (line := self._known(index := index + 1)) is not None:
            sung += normalise(line)
        return sung[: self.max_copy]
