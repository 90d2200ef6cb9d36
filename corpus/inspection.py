"""把语料写出来给人看：要训练的每一首，去掉的行，没有用的歌，略过的文件。"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpus.cleaning import Song
from corpus.files import CorpusError, file_errors, find_files, shown
from corpus.songs import ReadSong, Say, distinct_songs, split_songs

SONGS, DROPPED, FILES = "songs.txt", "dropped.txt", "files.txt"


def inspect(
    lyrics_dir: Path, folder: Path, val_fraction: float, outputs: Sequence[Path], say: Say, progress: Say
) -> dict[str, Any]:
    """读取、清洗、去重、划分，写进 folder，返回报告。

    Raises:
        CorpusError: 歌词有误，或 folder 里有别的东西、写不了。
    """
    require_own_folder(folder, lyrics_dir)
    found = find_files(lyrics_dir, outputs)
    report: dict[str, Any] = {"ignored": found.ignored, "ignored_examples": found.examples}
    seen: list[ReadSong] = []
    songs, keys, _ = distinct_songs(lyrics_dir, found.files, report, say, progress, seen)
    report["songs"] = len(songs)
    _, val, digests = split_songs(keys, val_fraction)
    held_out = set(val)
    with file_errors("写不了", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (
            open(folder / SONGS, "w", encoding="utf-8") as kept,
            open(folder / DROPPED, "w", encoding="utf-8") as dropped,
        ):
            number = 0
            for entry in seen:
                if entry.reason or entry.song is None:
                    dropped.write(_unused(entry))
                    continue
                kept.write(_used(entry, entry.song, number + 1, number in held_out, bool(digests[number] & 1)))
                number += 1
        lines = [
            f"{count:>8,}  {reason}（如 {(found.examples | report['unread_examples'])[reason]}）"
            for reason, count in (found.ignored | report["unread"]).items()
        ]
        lines += [f"许多首没有分开：{where}" for where in report["many_songs"]]
        read = [f"{shown(path)}" for path in found.files]
        (folder / FILES).write_text(
            "\n".join(["没有读的文件：", *lines, "", "读了的文件：", *read, ""]), encoding="utf-8"
        )
    return report


def require_own_folder(folder: Path, lyrics_dir: Path) -> None:
    """
    Raises:
        CorpusError: folder 是歌词文件夹，或里面有不是上次 --inspect 写的东西。
    """
    if folder.exists() and folder.resolve() == lyrics_dir.resolve():
        raise CorpusError(f"--inspect 后面是写到哪里，不是歌词文件夹；歌词文件夹用 --lyrics_dir 给：{shown(folder)}")
    if lyrics_dir.resolve() in folder.resolve().parents:
        raise CorpusError(f"--inspect 的文件夹不能在歌词文件夹里面，否则下次会被当作歌词：{shown(folder)}")
    with file_errors("写不了", folder):
        if folder.exists() and (
            not folder.is_dir() or any(path.name not in (SONGS, DROPPED, FILES) for path in folder.iterdir())
        ):
            raise CorpusError(
                f"{shown(folder)} 里有别的东西：--inspect 后面请给一个新的文件夹（歌词文件夹用 --lyrics_dir 给）"
            )


def _used(entry: ReadSong, song: Song, number: int, held_out: bool, named: bool) -> str:
    side = "验证" if held_out else "训练"
    names = " · ".join(filter(None, (song.name, song.singer))) or "（无名）"
    head = f"━━ {number} · {side} · {names}{'' if named else '（训练时不带歌名、歌手）'} · {entry.where}\n"
    return head + song.text + "\n" + _lines(entry) + "\n"


def _unused(entry: ReadSong) -> str:
    song = entry.song
    text = f"{' · '.join(filter(None, (song.name, song.singer)))}\n{song.text}\n" if song else ""
    return f"━━ {entry.reason} · {entry.where}\n{text}{_lines(entry)}\n"


def _lines(entry: ReadSong) -> str:
    return "".join(f"    ✗ {dropped.reason}：{dropped.line}\n" for dropped in entry.lines)
