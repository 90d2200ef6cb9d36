"""训练与验证的批次。"""

import threading

import numpy as np
import pytest

from corpus.tokens import IGNORED, Batches, Prefetcher, validation_batches

# ---- 训练批次 ----

SIZES = [(103, 10, 4), (50, 10, 5), (29, 8, 8), (11, 10, 3), (5, 10, 2)]  # (词元数, 窗口, 批)


@pytest.mark.parametrize(("count", "seq_len", "batch_size"), SIZES)
def test_targets_are_shifted_by_one(count, seq_len, batch_size):
    """目标是输入右移一位，首尾相接处也是。"""
    batches = Batches(np.arange(count, dtype=np.uint16), seq_len, batch_size, seed=1)
    for step in range(10):
        x, y = batches.at(step)
        assert x.shape == y.shape == (batch_size, seq_len)
        assert x.dtype == y.dtype == np.int64
        assert np.array_equal(y, (x + 1) % count)


@pytest.mark.parametrize(("count", "seq_len", "batch_size"), SIZES)
def test_every_epoch_visits_each_window_once(count, seq_len, batch_size):
    """每轮每个窗口一次，窗口不重叠；语料比一批小时批次跨轮。"""
    batches = Batches(np.arange(count, dtype=np.uint16), seq_len, batch_size, seed=3)
    per_epoch = max(1, count // seq_len)
    assert batches.windows_per_epoch == per_epoch
    steps = -(-per_epoch * 4 // batch_size)
    windows = np.concatenate([batches.at(step)[0] for step in range(steps)])[: per_epoch * 4]
    for epoch in windows.reshape(4, per_epoch, seq_len):
        assert len(set(epoch[:, 0].tolist())) == per_epoch
        if count >= seq_len:
            assert len(set(epoch.ravel().tolist())) == per_epoch * seq_len


def test_batches_depend_on_seed_and_step_only():
    """第 n 步的批次与先前取过什么无关；换种子、换轮则次序不同。"""
    tokens = np.arange(1000, dtype=np.uint16)
    walked = Batches(tokens, 10, 16, seed=1)
    in_order = [walked.at(step)[0] for step in range(20)]
    for step in (19, 3, 11):
        assert np.array_equal(Batches(tokens, 10, 16, seed=1).at(step)[0], in_order[step])
    assert not np.array_equal(Batches(tokens, 10, 16, seed=2).at(0)[0], in_order[0])
    epochs = [Batches(tokens, 10, 100, seed=1).at(step)[0] for step in (0, 1)]
    assert not np.array_equal(*epochs)


def test_batch_size_only_regroups():
    """批大小只改变分组，不改变窗口的次序。"""
    tokens = np.arange(1000, dtype=np.uint16)
    large = Batches(tokens, 10, 12, seed=1).at(0)[0]
    small = [Batches(tokens, 10, 4, seed=1).at(step)[0] for step in range(3)]
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
