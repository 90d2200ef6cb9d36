"""词元缓存：什么变了就重建，坏了认得出；用检查点的分词器。"""

import os
from pathlib import Path

import numpy as np
import pytest
from workshop import lyrics_of, make_lines, make_song

import tokenizer as tokenizer_module
from corpus import tokens
from corpus.cleaning import CLEANING_VERSION
from corpus.files import find_files, fingerprint_files


def test_second_start_reads_the_cache(forty):
    """什么都没变时直接读缓存，一个文件也不改写。"""
    files = [*forty.cache.iterdir(), forty.model]
    for path in files:
        os.utime(path, (1, 1))
    again = forty.prepare()
    assert not forty.rebuilt
    assert not forty.trained
    assert {path.stat().st_mtime for path in files} == {1}
    assert set(forty.cache.iterdir()) == set(files[:-1])
    assert np.array_equal(again.train, forty.corpus.train)
    assert np.array_equal(again.val, forty.corpus.val)
    assert again.fingerprint == forty.corpus.fingerprint


def test_changed_song_rebuilds(forty):
    """改了一首歌的一个字（文件大小不变）也会重建。"""
    path = forty.lyrics / "songs.json"
    size, line = path.stat().st_size, make_lines(7)[0]
    path.write_text(path.read_text(encoding="utf-8").replace(line, "風" + line[1:]), encoding="utf-8")
    assert path.stat().st_size == size
    corpus = forty.prepare()
    assert forty.rebuilt
    assert corpus.fingerprint != forty.corpus.fingerprint
    lyrics = lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val)
    assert any("風" in text for text in lyrics)


def test_cleaning_version_rebuilds(forty, monkeypatch):
    """清洗规则的版本变了，缓存作废；文件的指纹不变。"""
    monkeypatch.setattr(tokens, "CLEANING_VERSION", CLEANING_VERSION + 1)
    assert forty.prepare().fingerprint == forty.corpus.fingerprint
    assert forty.rebuilt


def test_tokenizer_settings_rebuild(forty, monkeypatch):
    """分词器的训练方法变了，重训分词器。"""
    monkeypatch.setattr(tokenizer_module, "SETTINGS_VERSION", tokenizer_module.SETTINGS_VERSION + 1)
    forty.prepare()
    assert forty.trained


def test_other_vocabulary_rebuilds(workshop):
    """换了词表大小，重训分词器并重新编码。"""
    workshop.write("songs.json", [make_song(seed, 120) for seed in range(40)])
    larger = workshop.prepare(vocab_size=620)
    smaller = workshop.prepare(vocab_size=600)
    assert workshop.trained
    assert workshop.rebuilt
    assert (larger.tokenizer.vocab_size, smaller.tokenizer.vocab_size) == (620, 600)
    assert smaller.train.max() < 600


def test_other_split_rebuilds(forty):
    """换了验证比例，重新划分。"""
    corpus = forty.prepare(val_fraction=0.5)
    assert forty.rebuilt
    assert corpus.report["val_songs"] > forty.corpus.report["val_songs"]


def test_other_tokenizer_file_rebuilds(forty):
    """分词模型文件被换掉时，不拿旧缓存去配。"""
    forty.model.write_bytes(tokenizer_module.train(make_lines(77, 200), 600).model_bytes)
    corpus = forty.prepare()
    assert forty.trained
    assert np.array_equal(corpus.train, forty.corpus.train)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def damage_header_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:64])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0")


def damage_flip_token(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x01
    path.write_bytes(content)


def damage_flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 0x01
    path.write_bytes(content)


def damage_remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_header_only,
        damage_empty,
        damage_longer,
        damage_flip_token,
        damage_flip_header,
        damage_remove,
    ],
    ids=lambda damage: damage.__name__.removeprefix("damage_"),
)
@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_damaged_cache_is_rebuilt(forty, damage, name):
    """缓存被截断、改了一位或删掉：发现并重建成同样的词元，分词器不必重训。"""
    train, val = np.array(forty.corpus.train), np.array(forty.corpus.val)
    forty.corpus = None  # 放开内存映射
    damage(forty.cache / name)
    again = forty.prepare()
    assert forty.rebuilt
    assert not forty.trained
    assert np.array_equal(again.train, train)
    assert np.array_equal(again.val, val)
    forty.prepare()
    assert not forty.rebuilt


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"{}", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["report.json", "tokenizer.json"])
def test_damaged_notes_are_rebuilt(forty, name, content):
    """缓存旁的记录坏了，也是重建，不是回溯。"""
    (forty.cache / name).write_bytes(content)
    assert np.array_equal(forty.prepare().train, forty.corpus.train)


def test_given_tokenizer_is_used_and_the_file_left_alone(forty):
    """用检查点的分词器时不训练，也不碰分词模型文件；它有自己的缓存指纹。"""
    given = tokenizer_module.train(make_lines(77, 200), 600)
    os.utime(forty.model, (1, 1))
    content = forty.model.read_bytes()
    corpus = forty.prepare(tokenizer=given)
    assert forty.rebuilt
    assert not forty.trained
    assert corpus.tokenizer is given
    assert forty.model.read_bytes() == content
    assert forty.model.stat().st_mtime == 1
    expected = {"\n".join(make_lines(seed)) for seed in range(40)}
    assert lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val) == expected
    forty.prepare(tokenizer=given)
    assert not forty.rebuilt
    assert corpus.fingerprint == forty.corpus.fingerprint  # 语料没变，检查点认得出


def test_given_tokenizer_creates_no_file(workshop):
    """没有分词模型文件时，也不因检查点的分词器而生出一个。"""
    workshop.write("a.json", [make_song(seed) for seed in range(10)])
    workshop.prepare(tokenizer=tokenizer_module.train(make_lines(77, 200), 600))
    assert not workshop.model.exists()


def test_corpus_fingerprint_matches_prepare(forty):
    """检查点里的语料指纹，不准备语料也算得出。"""
    assert fingerprint_files(forty.lyrics, find_files(forty.lyrics).files) == forty.corpus.fingerprint
