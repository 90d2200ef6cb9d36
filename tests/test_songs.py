"""划分与词元流：每首歌恰在一边，一行不少。"""

import numpy as np
import pytest
from workshop import keys_of, lyrics_of, make_lines, make_song, split_stream

import tokenizer as tokenizer_module
from corpus.near_copies import content_key, near_copies
from corpus.songs import split_songs, unigram_bits_per_character

# ---- 划分 ----


def test_adding_songs_moves_none():
    """加歌之后，旧歌仍在原来那一边；次序也无关。"""
    old = keys_of(*(make_lines(seed, 3) for seed in range(200)))
    new = keys_of(*(make_lines(seed, 3) for seed in range(200, 500)))

    def val_keys(keys):
        return {keys[index] for index in split_songs(keys, 0.1)[1]}

    before, after = val_keys(old), val_keys(new[:150] + old[::-1] + new[150:])
    assert before == after & set(old)
    assert after - before


def test_split_covers_every_song_once():
    """每首恰在一边，验证集约为所要的比例。"""
    keys = keys_of(*(make_lines(seed, 3) for seed in range(1000)))
    train, val, digests = split_songs(keys, 0.1)
    assert sorted(train + val) == list(range(1000))
    assert 60 <= len(val) <= 140
    assert len(set(digests)) == 1000


@pytest.mark.parametrize("fraction", [1e-9, 0.5])
def test_two_songs_fill_both_sides(fraction):
    """两首歌也要一边一首。"""
    for seed in range(10):
        train, val, _ = split_songs(keys_of(make_lines(seed), make_lines(seed + 50)), fraction)
        assert len(train) == len(val) == 1


def test_unigram_bits_per_character():
    """手算：训练 aab，验证 ab；计数 a2 b1 歌尾1 未见1，加一后 a3 b2 歌尾2 未见1，共 8。"""
    expected = -(np.log2(3 / 8) + np.log2(2 / 8) + np.log2(2 / 8)) / 2
    assert unigram_bits_per_character(["aab"], ["ab"]) == pytest.approx(expected)
    unseen = -(np.log2(1 / 8) + np.log2(2 / 8))
    assert unigram_bits_per_character(["aab"], ["c"]) == pytest.approx(unseen)


# ---- 词元流 ----


def test_stream_holds_every_song(forty):
    """两个词元流合起来正是全部歌，一行不少，布局是 `<s> [<title>] [<singer>] <lyric> … </s>`。"""
    corpus = forty.corpus
    assert corpus.train.dtype == corpus.val.dtype == np.uint16
    train, val = lyrics_of(corpus, corpus.train), lyrics_of(corpus, corpus.val)
    assert train | val == {"\n".join(make_lines(seed)) for seed in range(40)}
    assert train
    assert val
    assert not train & val


def test_half_of_the_songs_carry_names(workshop):
    """约一半的歌带歌名与歌手，是哪一半由内容决定，加歌不变；名字写对了歌。"""
    workshop.write("b.json", [make_song(seed, 4) for seed in range(100)])

    def named(corpus):
        return {
            song["lyric"]: (song.get("title"), song.get("singer"))
            for stream in (corpus.train, corpus.val)
            for song in split_stream(corpus, stream)
        }

    before = named(workshop.prepare())
    written = {"\n".join(make_lines(seed, 4)): (f"歌名{seed}", f"歌手{seed}") for seed in range(100)}
    assert all(names in ((None, None), written[lyric]) for lyric, names in before.items())
    assert 30 <= sum(names != (None, None) for names in before.values()) <= 70
    workshop.write("a.json", [make_song(seed, 4) for seed in range(100, 150)])
    after = named(workshop.prepare())
    assert {lyric: after[lyric] for lyric in before} == before


def test_missing_singer_leaves_no_mark(workshop):
    """没有歌手的歌不写空的 <singer>。"""
    workshop.write("a.json", [{**make_song(seed), "singer": ""} for seed in range(30)])
    corpus = workshop.prepare()
    songs = split_stream(corpus, corpus.train) + split_stream(corpus, corpus.val)
    assert {tuple(song) for song in songs} == {("title", "lyric"), ("lyric",)}


def test_report(workshop):
    """报告：读了多少、因何舍弃、重复多少、字数、词元数、两边各多少。"""
    songs = [make_song(seed) for seed in range(20)]
    live = {**make_song(3), "lyric": make_lines(3) + make_lines(3)[5:] + ["谢谢大家"]}
    workshop.write("a.json", [*songs, make_song(1), live, {"name": "缺"}, {"lyric": "Hello"}])
    corpus = workshop.prepare()
    report = corpus.report
    assert report["songs_read"] == 24
    assert report["dropped"] == {"缺少 lyric": 1, "汉字不足 10 个": 1}
    assert (report["identical"], report["near_copies"]) == (1, 1)
    assert report["songs"] == report["train_songs"] + report["val_songs"] == 20
    assert report["characters"] == sum(len("\n".join(make_lines(seed))) for seed in range(20))
    assert report["tokens"] == len(corpus.train) + len(corpus.val)
    assert (report["train_tokens"], report["val_tokens"]) == (len(corpus.train), len(corpus.val))
    assert report["tokens_per_character"] == pytest.approx(report["tokens"] / report["characters"])
    assert report["vocab_size"] == corpus.tokenizer.vocab_size < 2000
    assert workshop.prepare().report == report  # 读缓存时也是同一份


def test_first_in_reading_order_stays(workshop):
    """重复的歌留下先读到的：文件按路径，文件内按次序。"""
    others = [make_song(seed) for seed in range(10, 20)]
    workshop.write("b.json", [*others, {**make_song(1), "lyric": [*make_lines(1), "后来加的一行"]}])
    workshop.write("a.json", [make_song(1)])
    corpus = workshop.prepare()
    lyrics = lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val)
    assert "\n".join(make_lines(1)) in lyrics
    assert len(lyrics) == 11


def test_no_near_copy_on_both_sides(workshop):
    """每首歌都有一个近似的版本时，验证集里没有训练过的歌。"""
    songs = [make_song(seed, 12) for seed in range(40)]
    covers = [{**song, "lyric": [*song["lyric"][:9], *make_lines(500 + n, 3)]} for n, song in enumerate(songs)]
    workshop.write("a.json", songs)
    workshop.write("b.json", covers)
    corpus = workshop.prepare(val_fraction=0.5)
    train, val = sorted(lyrics_of(corpus, corpus.train)), sorted(lyrics_of(corpus, corpus.val))
    assert len(train) + len(val) == 40
    assert len(val) >= 10
    assert near_copies([content_key(text) for text in train + val]) == {}


def test_added_songs_move_none_in_the_streams(forty):
    """加一个文件之后，旧歌在词元流里仍在原来那一边。"""
    before = lyrics_of(forty.corpus, forty.corpus.val)
    old = before | lyrics_of(forty.corpus, forty.corpus.train)
    forty.write("added.json", [make_song(seed) for seed in range(100, 140)])
    corpus = forty.prepare()
    assert lyrics_of(corpus, corpus.val) & old == before


def test_tokenizer_learns_from_training_songs_only(workshop):
    """验证歌曲的字不进分词器的训练语料。"""
    workshop.write("a.json", [make_song(seed) for seed in range(40)])
    seen = []
    original = tokenizer_module.train

    def spy(lines, vocab_size):
        seen.extend(lines)
        return original(lines, vocab_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "train", spy)
        corpus = workshop.prepare()
    held_out = {line for text in lyrics_of(corpus, corpus.val) for line in text.split("\n")}
    assert held_out
    assert not held_out & set(seen)
