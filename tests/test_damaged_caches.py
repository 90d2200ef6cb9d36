"""放坏了的缓存：不是认出来重建，就是与原来一模一样。"""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hostile import damaged
from workshop import Workshop, make_song

from corpus.tokens import Corpus, _cache_fingerprint, _load_cache, corpus_identity, read_stream


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """准备好的缓存，与每个文件的原样。"""
    shop = Workshop(tmp_path_factory.mktemp("shelf"))
    shop.write("a.json", [make_song(seed) for seed in range(12)])
    corpus = shop.prepare()
    shop.streams = np.array(corpus.train), np.array(corpus.val)
    shop.corpus = Corpus(
        corpus.tokenizer, corpus.fingerprint, corpus.report, *shop.streams, corpus.train_folders, corpus.val_folders
    )
    shop.files = {path: path.read_bytes() for path in [*shop.cache.iterdir(), shop.model]}
    return shop


def assert_same_corpus(corpus: Corpus, shop: Workshop) -> None:
    assert all(np.array_equal(a, b) for a, b in zip((corpus.train, corpus.val), shop.streams, strict=True))
    assert corpus.report == shop.corpus.report
    assert corpus.fingerprint == shop.corpus.fingerprint


def place(path: Path, content: bytes) -> None:
    """换掉文件而不是改写它：旧的内存映射不受影响。"""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_damaged_caches_are_never_used(shelf):
    """几百种损坏：读缓存不是一无所得，就是与原来一模一样。"""
    draw, outcomes = random.Random(3), Counter()
    for number in range(900):
        path = shelf.cache / ("train.bin", "val.bin", "report.json")[number % 3]
        original = shelf.files[path]
        content = original if number % 2 else original[:100]
        place(path, damaged(draw, content + original[len(content) :]))
        identity = corpus_identity(shelf.corpus.fingerprint, 0.2)
        found = _load_cache(shelf.cache, shelf.corpus.tokenizer, identity)
        outcomes[found is None] += 1
        if found is not None:
            assert all(
                np.array_equal(a, b) for a, b in zip(map(found[0].get, ("train", "val")), shelf.streams, strict=True)
            )
        place(path, original)
    assert outcomes[True] > 300, outcomes
    assert outcomes[False] > 100, outcomes


def test_every_header_byte_matters_or_does_not(shelf):
    """文件头的每个字节改掉任一位：不用这份缓存，或读出同样的词元。"""
    path = shelf.cache / "train.bin"
    original = shelf.files[path]
    stored = _cache_fingerprint(shelf.corpus.tokenizer, corpus_identity(shelf.corpus.fingerprint, 0.2))
    for place_of_bit in range(8 * 64):
        content = bytearray(original)
        content[place_of_bit // 8] ^= 1 << place_of_bit % 8
        place(path, content)
        stream = read_stream(path, stored)
        assert stream is None or np.array_equal(stream, shelf.streams[0])
    place(path, original)


def test_damaged_caches_are_rebuilt(shelf):
    """缓存、记录、分词模型的任何损坏，再启动一次都得到同样的语料，此后不再重建。"""
    draw = random.Random(4)
    for number in range(60):
        path = list(shelf.files)[number % len(shelf.files)]
        place(path, damaged(draw, shelf.files[path][: draw.choice([None, -1, 10, 0])]))
        assert_same_corpus(shelf.prepare(), shelf)
        assert_same_corpus(shelf.prepare(), shelf)
        assert not shelf.rebuilt
        assert shelf.model.read_bytes() == shelf.files[shelf.model]


@pytest.mark.parametrize("change", [{}, {"songs": 5}, None, [], "x", float("nan"), "nested"], ids=str)
def test_reports_of_wrong_shape_are_rebuilt(shelf, change):
    """report.json 仍是合法的 JSON，只是少了项、换了类型、嵌套极深：重建，而不是留给显示的人去出错。"""
    path = shelf.cache / "report.json"
    noted = json.loads(shelf.files[path])
    text = json.dumps({**noted, "report": change})
    place(path, text.replace('"nested"', "[" * 50_000 + "]" * 50_000).encode())
    assert_same_corpus(shelf.prepare(), shelf)
    assert shelf.rebuilt
    place(path, json.dumps({"fingerprint": noted["fingerprint"]}).encode())
    assert_same_corpus(shelf.prepare(), shelf)
    assert shelf.rebuilt


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_truncated_tokenizer_is_trained_again(shelf, kept):
    """分词模型断了半截，哪怕记录里的哈希也跟着改了：重训。"""
    content = shelf.files[shelf.model][:kept]
    place(shelf.model, content)
    assert_same_corpus(shelf.prepare(), shelf)
    assert shelf.trained
    note = json.loads(shelf.files[shelf.cache / "tokenizer.json"])
    place(shelf.model, content)
    if kept in (0, 1):
        note["sha256"] = hashlib.sha256(content).hexdigest()
        place(shelf.cache / "tokenizer.json", json.dumps(note).encode())
    assert_same_corpus(shelf.prepare(), shelf)
    assert shelf.trained
