"""一个歌词文件 → 里面的歌，未清洗。"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from corpus.cleaning import RawSong, Song
from corpus.files import PLAYER_SUFFIXES, CorpusError, decode_bytes, is_encrypted, read_bytes, shown
from corpus.karaoke import KaraokeError, is_ttml, read_karaoke
from corpus.song_books import split_text

NO_SONGS, ENCRYPTED, NO_COLUMN = "没有歌的 JSON", "加了密的歌词", "没有歌词一列的表"


class NotLyrics(Exception):
    """文件里没有能读的歌；消息是原因，文件计入略过的。"""


def read_file(path: Path) -> Iterator[RawSong]:
    """一个文件里的歌，未清洗。

    Raises:
        CorpusError: 编码、JSON、表格或 XML 有误（写明行与列）。
        NotLyrics: 加了密，或里面没有歌。
    """
    content, suffix, where = read_bytes(path), path.suffix.lower(), shown(path)
    if suffix not in (".json", ".jsonl", ".csv", ".tsv") and is_encrypted(content, suffix):
        raise NotLyrics(ENCRYPTED)
    text = decode_bytes(content, path)
    if suffix == ".json":
        return _read_json(text, path)
    if suffix == ".jsonl":
        return _songs(_json_lines(text, path), where, "第 {} 行")
    if suffix in (".csv", ".tsv"):
        return _read_table(text, path)
    if is_ttml(text):
        try:
            read_karaoke(text)
        except KaraokeError as error:
            raise CorpusError(f"{where}：{error}") from None
    elif suffix == ".ttml":
        raise CorpusError(f"{where}：不是 TTML（开头应为 <tt …>）")
    timed = suffix == ".lrc" or suffix in PLAYER_SUFFIXES
    if timed and text.lstrip()[:1] == "{":
        text = _lyric_of_api(text) or text
    titled = [part for part in _TITLE_TAG.split(text) if part.strip(" \t\r\n\ufeff")]
    if len(_TITLE_TAG.findall(text)) > 1:  # 有几个 [ti:] 就是几首
        timed, songs = True, [Song("", "", part) for part in titled]
    else:
        songs = [Song("", "", text)] if timed else split_text(text)
    whole = len(songs) < 2
    return (
        RawSong(*song, where if whole else f"{where} 第 {number} 首", path.stem, timed, whole)
        for number, song in enumerate(songs, 1)
    )


_TITLE_TAG = re.compile(r"^[ \t\ufeff]*(?=[\[［][ \t]*ti[ \t]*[:：])", re.M | re.I)


# ---------------------------------------------------------------------------
# JSON 与表格：各种叫法的歌名、歌手、歌词
# ---------------------------------------------------------------------------

_LYRIC_KEYS = (
    "lyric lyrics plainlyrics syncedlyrics lyriccontent lyriclines lyrictext lyricstext songlyric songlyrics "
    "lrc 歌词 歌詞 歌词内容 paragraphs"
).split()
_TEXT_KEYS = "content contents text body lines 正文 内容 內容 词 詞".split()  # 别的数据也这么叫：要同时有歌名才算
_NAME_KEYS = (
    "name title song songname songtitle trackname track tracktitle musicname rhythmic 歌名 歌曲 歌曲名 歌曲名称 "
    "曲名 标题 標題 题目 題目 名称"
).split()
_SINGER_KEYS = (
    "singer artist artists singers singername artistname author authors performer 歌手 歌手名 演唱 演唱者 艺人 "
    "藝人 作者 ar"
).split()
_DEEPEST = 6  # 数组最多包在这么多层里


def _plain(key: Any) -> str:
    return re.sub(r"[\s_\-]", "", str(key)).lower()


def _value(entry: dict[str, Any], keys: Sequence[str]) -> Any:
    """entry 里最先对上的一个；entry 的键已由 `_plain` 化简。"""
    return next((entry[key] for key in keys if entry.get(key) not in (None, "", [])), None)


def _lyric_of(entry: dict[str, Any]) -> Any:
    """(有没有歌词一项, 歌词)。"""
    for key in _LYRIC_KEYS:
        if key in entry:
            found = _value(entry, _LYRIC_KEYS)
            return True, entry[key] if found is None else found
    if any(key in entry for key in _NAME_KEYS):
        for key in _TEXT_KEYS:
            if isinstance(entry.get(key), (str, list)):
                return True, entry[key]
    return False, None


def _raw_song(song: Any, where: str, singer: Any = "") -> RawSong:
    if not isinstance(song, dict):
        return RawSong("", "", 0, where)  # 由清洗一步归入「格式不对」
    if song.get("lyric") is not None and song.get("name"):  # 语料本来的写法，最多
        return RawSong(song["name"], song.get("singer", singer), song["lyric"], where)
    entry = {_plain(key): value for key, value in song.items()}
    name, by = _value(entry, _NAME_KEYS), _value(entry, _SINGER_KEYS)
    return RawSong(name or "", by or singer, _lyric_of(entry)[1], where)


def _holds_lyric(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return "lyric" in value or _lyric_of({_plain(key): part for key, part in value.items()})[0]


def _read_json(text: str, path: Path) -> Iterator[RawSong]:
    where = shown(path)
    try:
        value = _parse_json(text, path)
    except CorpusError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1 and all(
            line.lstrip().startswith("{") and line.rstrip().endswith(("}", "},")) for line in lines
        ):
            return _songs(_json_lines(text, path), where, "第 {} 行")  # 其实是 JSON Lines
        hopeful = _LYRIC_KEYS + (_NAME_KEYS + _SINGER_KEYS if text.lstrip()[:1] == "[" else [])
        if text.strip(" \0\t\r\n") and not re.search(rf"[\"'](?:{'|'.join(hopeful)})", text, re.I):
            raise NotLyrics("写错了、也看不出有歌的 JSON") from None
        raise error
    songs = list(_songs_in(value))
    if not songs:
        raise NotLyrics(NO_SONGS)
    stem = path.stem if len(songs) == 1 else ""  # 只有一首，没有歌名时用文件名
    return (
        _raw_song(song, f"{where} 第 {number} 首", singer)._replace(stem=stem)
        for number, (song, singer) in enumerate(songs, 1)
    )


def _songs_in(value: Any, singer: Any = "", depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """JSON 里的歌：(歌, 外层写的歌手)。数组可以包在对象里，也可以是 {歌名: 歌}。"""
    if depth > _DEEPEST:
        return
    songs, inside = [], value
    if isinstance(value, list) and any(map(_holds_lyric, value)):
        songs = value
    elif isinstance(value, dict):
        inside = value.values()
        songs = _columns(value) or ([value] if _holds_lyric(value) else [])
        if not songs:
            outer = _value({_plain(key): part for key, part in value.items()}, _SINGER_KEYS[:6])
            singer = outer if isinstance(outer, str) else singer
            songs = _named_songs(value)
    if songs:
        yield from ((song, singer) for song in songs)
    elif isinstance(value, (list, dict)):
        for part in inside:
            yield from _songs_in(part, singer, depth + 1)


def _named_songs(value: dict[str, Any]) -> list[dict[str, Any]]:
    """{歌名: 歌词}，或 {编号或歌名: 歌}；不是的是空的。"""
    verses = {key: part for key, part in value.items() if isinstance(part, str) and "\n" in part.strip()}
    if verses and 2 * len(verses) > len(value):
        return [{"name": name, "lyric": lyric} for name, lyric in verses.items()]
    entries = {key: part for key, part in value.items() if isinstance(part, dict)}
    if not all(map(_holds_lyric, entries.values())):
        return []
    return [part if str(key).isdigit() else {"name": key} | part for key, part in entries.items()]


def _columns(value: dict[str, Any]) -> list[dict[str, Any]]:
    """按列存的表：{"name": [歌名…], "lyric": [歌词…]}，或 pandas 的 {"name": {"0": …}, …} → 一首首；不是的是空的。"""
    entry = {_plain(key): part for key, part in value.items()}
    lyrics, names = _lyric_of(entry)[1], _value(entry, _NAME_KEYS)
    if isinstance(lyrics, dict) and isinstance(names, dict) and lyrics.keys() == names.keys():
        rows = list(lyrics)
    elif isinstance(lyrics, list) and isinstance(names, list) and len(lyrics) == len(names) > 1:
        if not all(isinstance(lyric, list) or (isinstance(lyric, str) and "\n" in lyric) for lyric in lyrics):
            return []
        rows = list(range(len(lyrics)))
    else:
        return []
    kept = {key: part for key, part in entry.items() if isinstance(part, type(lyrics)) and len(part) == len(rows)}
    return [{key: part[row] for key, part in kept.items()} for row in rows]


def _lyric_of_api(text: str) -> str | None:
    """音乐网站接口的回答：{"lrc": {"lyric": "[00:…"}, …} 里的歌词。"""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    parts = [value.get(key) for key in ("yrc", "lrc", "lyric", "lyrics", "krc", "qrc")]
    lyrics = (part.get("lyric") if isinstance(part, dict) else part for part in parts)
    return next((lyric for lyric in lyrics if isinstance(lyric, str) and lyric.strip()), None)


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _parse_json(line.strip().rstrip(","), path, number)


def _songs(entries: Iterator[tuple[int, Any]], where: str, place: str) -> Iterator[RawSong]:
    """逐行的 JSON；整个文件没有一首歌时略过它。"""
    found, seen = [], False
    for number, value in entries:
        songs = list(_songs_in(value))  # 一首，{"song": {…}}，或整个数组写在一行
        seen = seen or bool(songs)
        found += [(number, song, singer) for song, singer in songs or [(value, "")]]
    if not seen:
        raise NotLyrics(NO_SONGS)
    return (_raw_song(value, f"{where} {place.format(number)}", singer) for number, value, singer in found)


def _parse_json(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{shown(path)}：第 {line or error.lineno} 行第 {error.colno} 列不是合法的 JSON（{error.msg}）"
        ) from None
    except (RecursionError, ValueError):
        raise CorpusError(f"{shown(path)}{f'：第 {line} 行' if line else ''}：JSON 嵌套过深或数字过长") from None


def _read_table(text: str, path: Path) -> Iterator[RawSong]:
    """CSV、TSV：头几行里有一行是各列的名字。"""
    csv.field_size_limit(2**31 - 1)
    where, text = shown(path), re.sub(r"^sep=.\r?\n", "", text.replace("\0", "").lstrip("\ufeff"))
    head = text.lstrip("\n\r").split("\n", 1)[0]
    delimiter = max("\t,;|" if path.suffix.lower() == ".tsv" else ",\t;|", key=head.count)
    try:
        rows = _rows(text, delimiter, csv.QUOTE_MINIMAL)
    except csv.Error as error:
        try:  # 引号只是普通的字：每行的列数都对，才当作没有引号
            rows = _rows(text, delimiter, csv.QUOTE_NONE)
        except csv.Error:
            rows = []
        if len({len(row) for _, row in rows}) != 1:
            raise CorpusError(f"{where}：不是合法的 CSV（{error}）；请检查引号是否成对") from None
    for start, (_, columns) in enumerate(rows[:5]):
        if _lyric_of({_plain(cell): cell for cell in columns})[0]:
            return _table_songs(list(map(_plain, columns)), rows[start + 1 :], delimiter, where)
    raise NotLyrics(NO_COLUMN)


def _rows(text: str, delimiter: str, quoting: Literal[0, 3]) -> list[tuple[int, list[str]]]:
    """[(行号, 各格)]，不含空行。quoting 是 csv.QUOTE_MINIMAL 或 csv.QUOTE_NONE。"""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]


def _table_songs(
    columns: list[str], rows: list[tuple[int, list[str]]], delimiter: str, where: str
) -> Iterator[RawSong]:
    last_is_lyric = _lyric_of({columns[-1]: "", "name": ""})[0]
    for line, row in rows:
        if len(row) > len(columns) and last_is_lyric:  # 歌词里没有加引号的逗号
            row = [*row[: len(columns) - 1], delimiter.join(row[len(columns) - 1 :])]
        song = dict(zip(columns, row, strict=False))
        name, singer = _value(song, _NAME_KEYS) or "", _value(song, _SINGER_KEYS) or ""
        yield RawSong(name, singer, _lyric_of(song)[1] or "", f"{where} 第 {line} 行")
