"""请求里写的 → 设置与文字；写错的说在哪一栏，用的是 inference.py 的话。"""

import json
import re
from typing import Any

import flags
from flags import Flag
from lyrics.form import LyricsError
from lyrics.sound import RHYME_CLASSES, lines_of
from terminal import BROKEN_TEXT, UserError
from writing.settings import SONG_FLAGS, Settings
from writing.writer import Writer

MOST_SONGS, MOST_DRAFTS = 8, 32  # 一次几首、每行几稿的上限：内存随它们长
MOST_TEXT = 20_000  # 一首歌至多这么多个字符
MOST_LINES = 2_000  # 一次问几行的字数与韵

# 没有写明是哪个参数的话，说的是哪一栏
_SPEAKS_OF = (
    ("词牌", "cipai"),
    ("韵部", "rhyme"),
    ("句式", "like"),
    ("样例", "like"),
    ("开头", "prompt"),
    ("藏头", "acrostic"),
    ("关键词", "keywords"),
    ("索引", "max_copy"),
    ("辙的字", "rhyme"),
    ("max_tokens", "max_tokens"),
)


class BadRequest(Exception):
    """请求里写错的。

    Attributes:
        errors: {栏名: 一句话}；不在哪一栏里的，栏名为空。
    """

    def __init__(self, errors: dict[str, str]) -> None:
        super().__init__("；".join(errors.values()))
        self.errors = errors


def song_flags(most_tokens: int) -> dict[str, Flag]:
    """网页上用的参数：上限收紧，--like 是文字而不是路径。"""
    rules = {
        "max_tokens": flags.whole(1, most_tokens, optional=True),
        "min_tokens": flags.whole(0, most_tokens),
        "num_samples": flags.whole(1, MOST_SONGS),
        "candidates": flags.whole(1, MOST_DRAFTS),
        "like": flags.text(optional=True),
    }
    return {flag.name: flag._replace(rule=rules.get(flag.name, flag.rule)) for flag in SONG_FLAGS}


def parse_body(body: bytes) -> dict[str, Any]:
    """
    Raises:
        BadRequest: 不是一个 JSON 对象，或文字的编码有误。
    """

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        content = json.loads(body.decode("utf-8"), parse_constant=refuse)
        if not isinstance(content, dict):
            raise ValueError
        broken = BROKEN_TEXT.search(json.dumps(content, ensure_ascii=False))
    except (ValueError, RecursionError):
        raise BadRequest({"": "请求应是一个 JSON 对象"}) from None
    if broken:
        raise BadRequest({"": "文字的编码有误：请用 UTF-8"})
    return content


def known(body: dict[str, Any], *names: str) -> None:
    """
    Raises:
        BadRequest: 有不认识的字段。
    """
    for name in body:
        if name not in names:
            raise BadRequest({name[:60]: f"没有字段 {name[:60]}"})


def text_of(body: dict[str, Any], name: str) -> str:
    """一段文字；没有时为空。

    Raises:
        BadRequest: 不是文字，或太长。
    """
    text = body.get(name, "")
    if not isinstance(text, str):
        raise BadRequest({name: f"{name} 应为文字"})
    if len(text) > MOST_TEXT:
        raise BadRequest({name: f"{name} 太长：至多 {MOST_TEXT:,} 个字"})
    return text.replace("\r\n", "\n")


def whole_of(value: Any, name: str, least: int, most: int) -> int:
    """
    Raises:
        BadRequest: 不是范围之内的整数。
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadRequest({name: f"{name} 应为 {least} 到 {most} 的整数"})
    return value


def read_settings(values: Any, known_flags: dict[str, Flag]) -> Settings:
    """{参数: 值} → 设置；没有写明的用默认。

    Raises:
        BadRequest: 一次列出各栏的错。
    """
    if not isinstance(values, dict):
        raise BadRequest({"settings": "settings 应为一个对象"})
    found = {name: flag.default for name, flag in known_flags.items()}
    errors = {}
    for name, value in values.items():
        if name not in known_flags:
            errors[name[:60]] = f"没有参数 {name[:60]}"
        elif isinstance(value, (dict, list)) or len(str(value)) > MOST_TEXT:
            errors[name] = f"--{name}：应为一个数或一段文字"
        elif value is not None and value != "":
            typed = str(value).lower() if isinstance(value, bool) else str(value)
            try:
                found |= flags.parse_flags([known_flags[name]], [f"--{name}={typed}"], "webui.py", "")
            except UserError as error:
                errors[name] = str(error)
    if errors:
        raise BadRequest(errors)
    return Settings(**found)


def check(writer: Writer, settings: Settings, prompt: str = "") -> None:
    """写不成的，不排队就说。

    Raises:
        BadRequest: 说在哪一栏。
    """
    try:
        writer.require(settings, prompt)
    except LyricsError as error:
        raise BadRequest({field_of(str(error)): str(error)}) from None


def field_of(message: str) -> str:
    """一句话说的是哪一栏；说不准的为空。"""
    named = re.search(r"--([a-z_]+)", message)
    names = {flag.name for flag in SONG_FLAGS}
    if named and named[1] in names:
        return named[1]
    return next((field for words, field in _SPEAKS_OF if words in message), "")


def line_numbers(body: dict[str, Any], name: str, text: str) -> set[int]:
    """几个行号（从 1 起）。

    Raises:
        BadRequest: 不是这首歌的行号。
    """
    numbers = body.get(name, [])
    if not isinstance(numbers, list):
        raise BadRequest({name: f"{name} 应为几个行号"})
    return {whole_of(number, name, 1, len(lines_of(text))) for number in numbers}


def readings(body: dict[str, Any]) -> dict[int, str]:
    """{行号: 选定的辙}。

    Raises:
        BadRequest: 不是行号与辙名。
    """
    given = body.get("readings", {})
    if not isinstance(given, dict) or not all(
        number.isascii() and number.isdecimal() and len(number) < 6 and isinstance(name, str) and name in RHYME_CLASSES
        for number, name in given.items()
    ):
        raise BadRequest({"readings": "readings 应为 {行号: 辙名}"})
    return {int(number): name for number, name in given.items()}
