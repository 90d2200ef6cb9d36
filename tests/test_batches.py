"""训练与验证的批次。"""

import threading

import numpy as np
import pytest

from corpus.batches import IGNORED, Batches, Prefetcher, SongStream, validation_batches, weighted

# ---- 训练批次 ----

SIZES = [(103, 10, 4), (50, 10, 5), (29, 8, 8), (11, 10, 3), (5, 10, 2)]  # (词元数, 窗口, 批)
EOS = 9999


def songs_of(*lengths: int) -> SongStream:
    """几首歌，各有这么多词元（含 `</s>`）；歌里的词元各不相同。"""
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    tokens[np.cumsum(lengths) - 1] = EOS
    return SongStream(tokens, EOS)


def one_song(count: int) -> SongStream:
    """没有收尾的一首：次序洗不乱，好对照。"""
    return SongStream(np.arange(count, dtype=np.uint16), EOS)


@pytest.mark.parametrize(("count", "seq_len", "batch_size"), SIZES)
def test_targets_are_shifted_by_one(count, seq_len, batch_size):
    """目标是输入右移一位，首尾相接处也是。"""
    batches = Batches(one_song(count), seq_len, batch_size, seed=1)
    for step in range(10):
        x, y = batches.at(step)
        assert x.shape == y.shape == (batch_size, seq_len)
        assert x.dtype == y.dtype == np.int64
        assert np.array_equal(y, (x + 1) % count)


@pytest.mark.parametrize(("count", "seq_len", "batch_size"), SIZES)
def test_every_epoch_visits_each_window_once(count, seq_len, batch_size):
    """每轮每个窗口一次，窗口不重叠；语料比一批小时批次跨轮。"""
    batches = Batches(one_song(count), seq_len, batch_size, seed=3)
    per_epoch = max(1, count // seq_len)
    assert batches.windows_per_epoch == per_epoch
    steps = -(-per_epoch * 4 // batch_size)
    windows = np.concatenate([batches.at(step)[0] for step in range(steps)])[: per_epoch * 4]
    for epoch in windows.reshape(4, per_epoch, seq_len):
        assert len(set(epoch[:, 0].tolist())) == per_epoch
        if count >= seq_len:
            assert len(set(epoch.ravel().tolist())) == per_epoch * seq_len


def epoch_of(stream: SongStream, seq_len: int, epoch: int, times: np.ndarray | None = None) -> list[int]:
    """一轮的全部词元，首尾相接。"""
    batches = Batches(stream, seq_len, 1, 5, times)
    steps = range(epoch * batches.windows_per_epoch, (epoch + 1) * batches.windows_per_epoch)
    return [token for step in steps for token in batches.at(step)[0][0].tolist()]


def test_songs_are_shuffled_anew_every_epoch():
    """每轮的歌另排次序，每首从头到尾、恰好一遍。"""
    lengths = [3, 8, 5, 2, 9, 4, 7, 6, 11, 5]
    stream = songs_of(*lengths)
    songs = {tuple(song.tolist()) for song in np.split(stream.tokens, np.cumsum(lengths)[:-1])}
    orders = []
    for epoch in range(3):
        tokens = epoch_of(stream, 10, epoch)
        assert len(tokens) == sum(lengths)
        ends = [place + 1 for place, token in enumerate(tokens) if token == EOS]
        order = [tuple(tokens[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        assert set(order) == songs
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


def test_songs_are_sung_as_often_as_asked():
    """两遍的两遍，不要的不出现，半遍的约一半的轮里有；窗口数随之而变。"""
    stream = songs_of(10, 10, 10, 10)
    times = np.array([2.0, 0.0, 1.0, 0.5])
    assert Batches(stream, 5, 1, 5, times).windows_per_epoch == 7
    counts = np.zeros((60, 4))
    for epoch in range(60):
        tokens = epoch_of(stream, 40, epoch, np.array([2.0, 0.0, 1.0, 1.0]))
        for song in range(4):
            counts[epoch, song] = tokens.count(10 * song)
    assert counts.mean(axis=0).tolist() == [2, 0, 1, 1]
    halves = [3 in weighted(times, np.random.default_rng(seed)) for seed in range(400)]
    assert 0.4 < np.mean(halves) < 0.6


def test_a_tiny_share_of_one_song_still_makes_batches():
    """几遍都不足一，这一轮恰好一首也没有抽到：照样有批次。"""
    batches = Batches(songs_of(5, 5), 4, 2, 1, np.array([0.01, 0.02]))
    assert all(batches.at(step)[0].shape == (2, 4) for step in range(50))


def test_batches_depend_on_seed_and_step_only():
    """第 n 步的批次与先前取过什么无关；换种子、换轮则次序不同。"""
    stream = songs_of(*[7] * 140)
    walked = Batches(stream, 10, 16, seed=1)
    in_order = [walked.at(step)[0] for step in range(20)]
    for step in (19, 3, 11):
        assert np.array_equal(Batches(stream, 10, 16, seed=1).at(step)[0], in_order[step])
    assert not np.array_equal(Batches(stream, 10, 16, seed=2).at(0)[0], in_order[0])
    epochs = [Batches(stream, 10, 98, seed=1).at(step)[0] for step in (0, 1)]
    assert not np.array_equal(*epochs)


def test_batch_size_only_regroups():
    """批大小只改变分组，不改变窗口的次序。"""
    stream = songs_of(*[7] * 140)
    large = Batches(stream, 10, 12, seed=1).at(0)[0]
    small = [Batches(stream, 10, 4, seed=1).at(step)[0] for step in range(3)]
    assert np.array_equal(np.concatenate(small), large)


# ---- 验证批次 ----


@pytest.mark.parametrize("count", [2, 5, 10, 11, 12, 20, 21, 97, 101])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_validation_predicts_each_token_once(count, batch_size):
    """每个词元（开头的除外）恰好预测一次，余下的位置补 -1。"""
    tokens = np.arange(count, dtype=np.uint16)
    batches = list(validation_batches(tokens, 10, batch_size, most=10_000))
    targets = np.concatenate([y.ravel() for _, y in batches])
    assert targets[targets != IGNORED].tolist() == list(range(1, count))
    assert IGNORED == -1
    for x, y in batches:
        assert x.shape == y.shape
        assert x.shape[1] == 10
        assert len(x) <= batch_size
        assert x.dtype == y.dtype == np.int64
        assert ((y == x + 1) | (y == -1)).all()
        assert x.max() < count


def test_validation_of_part_is_the_same_every_time():
    """超过上限时取均匀分布的一部分，每次相同，不含重复，与批大小无关。"""
    tokens = np.arange(2001, dtype=np.uint16)

    def starts(batch_size):
        return [x[0] for batch, _ in validation_batches(tokens, 10, batch_size, most=8) for x in batch]

    assert starts(4) == starts(4) == starts(3)
    assert len(set(starts(4))) == len(starts(4)) == 8
    assert starts(4)[0] == 0
    assert starts(4)[-1] == 1990


def test_batches_are_made_ahead_in_another_thread():
    """下一步的在另一个线程里先备好，跳到别的步也对，错误在取的时候抛出，之后照常。"""
    made = []

    def make(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        if step == 7:
            raise ValueError("第七步")
        return step * 10

    ahead = Prefetcher(make)
    assert [ahead.at(step) for step in (0, 1, 2, 2, 6)] == [0, 10, 20, 20, 60]
    with pytest.raises(ValueError, match="第七步"):
        ahead.at(7)
    assert ahead.at(8) == 80
    ahead._worker.shutdown()
    assert made == [(step, False) for step in (0, 1, 2, 3, 2, 3, 6, 7, 8, 9)]
