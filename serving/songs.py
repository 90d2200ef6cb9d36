"""网页要的：写、接着写、重写其余、改一行；一行的字数与韵，韵典。"""

import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import generation
from lyrics.cipai import all_cipai
from lyrics.form import Form
from lyrics.sound import RHYME_CLASSES, lines_of, readings_of, rhyme_class, sung_count
from serving import requests
from serving.indexing import Indexing
from serving.requests import BadRequest, text_of
from serving.turns import Turn
from writing.settings import SONG_FLAGS, Settings
from writing.writer import Writer

Work = Callable[[Turn], None]


class Enough(Exception):
    """写出了 stop。"""


class Desk:
    """写歌的桌子：请求 → 一件要写的事；查一查的当场答。

    `write` 等四个返回的是排到了在写的线程里做的事，其余在别的线程里也能做。

    Args:
        most_tokens: max_tokens 的上限。
        indexing: 正在建的语料的索引。
    """

    def __init__(self, writer: Writer, most_tokens: int, indexing: Indexing | None = None) -> None:
        self.writer, self.flags, self.indexing = writer, requests.song_flags(most_tokens), indexing

    def settings(self, body: dict[str, Any], prompt: str = "") -> Settings:
        """
        Raises:
            BadRequest: 说在哪一栏。
        """
        settings = requests.read_settings(body.get("settings", {}), self.flags)
        requests.check(self.writer, settings, prompt)
        return settings

    def write(self, body: dict[str, Any]) -> Work:
        """从开头写 num_samples 首，依次写；每一首与单独写的相同。"""
        requests.known(body, "settings", "prompt")
        prompt = text_of(body, "prompt")
        settings = self.settings(body, prompt)
        return lambda turn: write_songs(self.writer, prompt, settings, turn)

    def more(self, body: dict[str, Any]) -> Work:
        """接着写。"""
        requests.known(body, "settings", "text", "ended", "readings")
        text, settings, readings = text_of(body, "text"), self.settings(body), requests.readings(body)
        if not isinstance(ended := body.get("ended", True), bool):
            raise BadRequest({"ended": "ended 应为 true 或 false"})

        def work(turn: Turn) -> None:
            seed = _begin(self.writer, turn, settings)
            song = self.writer.song_of(text, settings, ended)
            turn.tell({"song": 0, "seed": seed})
            self.writer.extend(song, settings, seed, lambda added: turn.tell({"text": added}), readings)
            turn.tell({"ended": song.ended})

        return work

    def rest(self, body: dict[str, Any]) -> Work:
        """留住的行不动，其余重写。"""
        requests.known(body, "settings", "text", "locked", "prompt", "readings")
        text, prompt, settings = text_of(body, "text"), text_of(body, "prompt"), self.settings(body)
        locked, readings = requests.line_numbers(body, "locked", text), requests.readings(body)
        if not lines_of(text):
            raise BadRequest({"text": "还没有写过；先写一首"})

        def work(turn: Turn) -> None:
            seed = _begin(self.writer, turn, settings)
            before = self.writer.song_of(text, settings)
            turn.tell({"song": 0, "seed": seed})
            song = self.writer.write_the_rest(
                before, locked, prompt, settings, seed, lambda added: turn.tell({"text": added}), readings
            )
            turn.tell({"ended": song.ended})

        return work

    def rewrite(self, body: dict[str, Any]) -> Work:
        """一行的几种写法，一次给出；same 是句式里与它一字不差、要一起换的各行。"""
        requests.known(body, "settings", "text", "line", "readings")
        text, settings, readings = text_of(body, "text"), self.settings(body), requests.readings(body)
        number = requests.whole_of(body.get("line"), "line", 1, len(lines_of(text)))

        def work(turn: Turn) -> None:
            seed = _begin(self.writer, turn, settings)
            options = self.writer.rewritings(text, number, settings, seed, readings.get(number))
            turn.tell({"options": options, "seed": seed, "same": self.writer.same_lines(text, number, settings)})
            if not options:
                turn.tell({"error": f"第 {number} 行没有写出别的，可再试一次，或放宽 max_copy", "status": 400})

        return work

    def check(self, body: dict[str, Any]) -> dict[str, Any]:
        """各栏的错，与各行该有的字数（循环使用）。"""
        requests.known(body, "settings", "prompt")
        try:
            form = self.settings(body, text_of(body, "prompt")).form()
        except BadRequest as error:
            return {"errors": error.errors, "lines": None, "wanted": []}
        return {"errors": {}, "lines": form.lines, "wanted": wanted(form)}

    def lines(self, body: dict[str, Any]) -> dict[str, Any]:
        """各行的字数、韵、可能的读法、与语料的相同处。"""
        requests.known(body, "lines")
        lines = body.get("lines")
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise BadRequest({"lines": "lines 应为几行文字"})
        if len(lines) > requests.MOST_LINES or sum(map(len, lines)) > requests.MOST_TEXT:
            raise BadRequest({"lines": f"至多 {requests.MOST_LINES:,} 行、{requests.MOST_TEXT:,} 个字"})
        return {"lines": [self.line(line) for line in lines]}

    def line(self, line: str) -> dict[str, Any]:
        found: dict[str, Any] = {"sung": sung_count(line), "rhyme": rhyme_class(line), "readings": readings_of(line)}
        if self.writer.copies is not None:
            found["copied"] = dict(zip(("start", "end", "label"), self.writer.copied_span(line), strict=True))
        return found

    def rhymes(self, body: dict[str, Any]) -> dict[str, Any]:
        """韵典里的一页。"""
        requests.known(body, "line", "reading")
        line, reading = text_of(body, "line"), body.get("reading")
        if reading is not None and (not isinstance(reading, str) or reading not in RHYME_CLASSES):
            raise BadRequest({"reading": "reading 应为一个辙名"})
        found = self.writer.rhymes.find(line[-24:], reading)
        if found is None:
            raise BadRequest({"line": "末尾不是汉字，没有韵"})
        page = found._asdict()
        return {name: words[:200] if isinstance(words, list) else words for name, words in page.items()}

    def about(self, model: str) -> dict[str, Any]:
        """页面开头要知道的：模型、各参数的默认与说明、辙、词牌。"""
        return {
            "model": model,
            "index": self.index(),
            "flags": {flag.name: {"default": flag.default, "help": flag.help} for flag in SONG_FLAGS},
            "classes": list(RHYME_CLASSES),
            "cipai": list(dict.fromkeys(one.name for one in all_cipai())),
        }

    def index(self) -> dict[str, Any]:
        """语料的索引：有没有，是不是在建，没有是为什么。"""
        building, reason = (self.indexing.building, self.indexing.reason) if self.indexing else (False, "")
        return {"ready": self.writer.copies is not None, "building": building, "reason": reason}


def wanted(form: Form) -> list[list[int]]:
    """各行的 [最少, 最多] 字数，循环使用；不限的为空。"""
    lengths = [(line.least, line.most) for line in form.pattern] or form.lengths
    return [list(pair) for pair in lengths]


def _begin(writer: Writer, turn: Turn, settings: Settings) -> int:
    """轮到了：写到一半也听得见叫停；返回种子。"""
    writer.check, writer.count = turn.check, lambda tokens: None
    return settings.seed if settings.seed is not None else secrets.randbelow(2**31 - 1)


class Tail:
    """写出的文字里找 stop：可能是它开头的几个字先留着不给。"""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.found = stops, "", False

    def push(self, text: str) -> str:
        """再来一段，现在可以给出的；最先写全的一个 stop 算数，与怎样分段无关。"""
        held = self.held + text
        for end in range(len(self.held) + 1, len(held) + 1):
            whole = [len(stop) for stop in self.stops if held.endswith(stop, 0, end)]
            if whole:
                self.held, self.found = "", True
                return held[: end - max(whole)]
        heads = (size for stop in self.stops for size in range(1, len(stop)) if held.endswith(stop[:size]))
        cut = len(held) - max(heads, default=0)
        self.held = held[cut:]
        return held[:cut]


def write_songs(writer: Writer, prompt: str, settings: Settings, turn: Turn, stops: Sequence[str] = ()) -> None:
    """依次写几首：每一首先告诉种子，再是开头之后的文字，末了写没写到头。

    Args:
        stops: 写出其中一个就停，不给出它。
    """
    seed = _begin(writer, turn, settings)
    for number in range(settings.num_samples):
        own = generation.song_seed(seed, number)
        turn.tell({"song": number, "seed": own, "prompt": prompt})
        _write_song(writer, prompt, dataclasses.replace(settings, num_samples=1), own, turn, number, Tail(stops))


def _write_song(
    writer: Writer, prompt: str, settings: Settings, seed: int, turn: Turn, number: int, tail: Tail
) -> None:
    tokens = 0

    def add(count: int) -> None:
        nonlocal tokens
        tokens += count

    def show(text: str) -> None:
        if said := tail.push(text):
            turn.tell({"song": number, "text": said})
        if tail.found:
            raise Enough

    writer.count, ended = add, True
    with contextlib.suppress(Enough):
        ended = writer.write(prompt, settings, seed, show)[0].ended
        if tail.held:
            turn.tell({"song": number, "text": tail.held})
    turn.tell({"song": number, "ended": ended, "tokens": tokens})
