"""互不相同的歌，与放语料、缓存、分词模型的临时文件夹。"""

import json
import random
from pathlib import Path

import numpy as np

from corpus.cleaning import RawSong
from corpus.formats import read_file
from corpus.near_copies import content_key
from corpus.tokens import Corpus, prepare

LETTERS = [chr(0x4E00 + 31 * index) for index in range(300)]
VERSE = "今夜我在风里等你\n山高水远路灯下\n雨落长街故乡的月亮照着河岸\n少年唱歌走过四季花开"


def make_lines(seed: int, lines: int = 10) -> list[str]:
    """一首歌的行：不同的 seed 没有共同的片段。"""
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=draw.randint(6, 9))) for _ in range(lines)]


def make_song(seed: int, lines: int = 10) -> dict:
    return {"name": f"歌名{seed}", "singer": f"歌手{seed}", "lyric": make_lines(seed, lines)}


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def read(path: Path) -> list[RawSong]:
    return list(read_file(path))


def keys_of(*songs: list[str]) -> list[str]:
    return [content_key("\n".join(lines)) for lines in songs]


class Workshop:
    """临时文件夹里的语料、缓存与分词模型。"""

    def __init__(self, folder: Path) -> None:
        self.lyrics, self.cache, self.model = folder / "lyrics", folder / "cache", folder / "bpe.model"
        self.said: list[str] = []

    def write(self, name: str, songs: list) -> Path:
        return write_json(self.lyrics / name, songs)

    def prepare(self, vocab_size: int = 2000, val_fraction: float = 0.2, **extra) -> Corpus:
        self.said = []
        return prepare(self.lyrics, self.cache, self.model, vocab_size, val_fraction, say=self.said.append, **extra)

    @property
    def rebuilt(self) -> bool:
        return any("编码" in message for message in self.said)

    @property
    def trained(self) -> bool:
        return any("训练分词器" in message for message in self.said)


def split_stream(corpus: Corpus, stream: np.ndarray) -> list[dict]:
    """词元流 → 每首歌 {title, singer, lyric}；布局不对时失败。"""
    book = corpus.tokenizer
    ends = np.flatnonzero(stream == book.eos_id) + 1
    assert ends[-1] == len(stream)
    songs = []
    for ids in np.split(stream, ends[:-1]):
        ids = ids.tolist()
        assert (ids[0], ids[-1]) == (book.bos_id, book.eos_id)
        song, current = {}, None
        for index in ids[1:-1]:
            if index in (book.title_id, book.singer_id, book.lyric_id):
                current = {book.title_id: "title", book.singer_id: "singer", book.lyric_id: "lyric"}[index]
                assert current not in song
                song[current] = []
            else:
                song[current].append(index)
        assert list(song) in (["title", "singer", "lyric"], ["title", "lyric"], ["singer", "lyric"], ["lyric"])
        songs.append({part: book.decode(inside) for part, inside in song.items()})
    return songs


def lyrics_of(corpus: Corpus, stream: np.ndarray) -> set[str]:
    return {song["lyric"] for song in split_stream(corpus, stream)}
