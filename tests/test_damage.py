"""放坏了的检查点：要么认出，要么读出的与原来相同。"""

import contextlib
import copy
import math
import random
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import torch

import tokenizer as tokenizer_module
from model import GPT, ModelConfig
from optimizer import build_optimizers
from training import checkpoint
from training.checkpoint import LATEST, CheckpointError

LINES = [f"今夜{a}在{b}里等你" for a in "我你他谁" for b in "风雨雪月灯河梦秋"] * 4


@pytest.fixture(scope="module")
def contents() -> dict:
    """一份可以接着训练的检查点的内容。"""
    torch.manual_seed(0)
    tokenizer = tokenizer_module.train(LINES, 400)
    model = GPT(ModelConfig(tokenizer.vocab_size, max_seq_len=16, n_layers=2, n_heads=2, n_embed=8))
    optimizers = build_optimizers("muon", model, 1e-3, 1e-3, 0.1)
    model.loss(torch.tensor([[5, 6]]), torch.tensor([[6, 7]])).backward()
    for optimizer in optimizers.values():
        optimizer.step()
    made = checkpoint.model_contents(model, tokenizer, {"seed": 7, "lyrics_dir": "歌"}, 12, 3.5, 4.5)
    made |= {"optimizer": {name: optimizer.state_dict() for name, optimizer in optimizers.items()}}
    made |= {"scaler": {}, "rng": {"seed": 7}, "best_val_loss": 3.5, "best_val_bpc": 4.5, "evaluation_due": False}
    return made | {"skipped_steps": 0, "corpus": "ab" * 32, "run_id": "0123456789abcdef"}


@pytest.fixture(scope="module")
def saved(contents, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / LATEST
    checkpoint.save(path, contents)
    return path


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def read(path: Path) -> dict:
    """像接着训练那样读：内容、模型、分词器、优化器都要合得上。"""
    found = checkpoint.load(path, for_resume=True)
    model, _ = checkpoint.restore(found, path)
    for name, optimizer in build_optimizers("muon", model, 1e-3, 1e-3, 0.1).items():
        checkpoint.restore_optimizer(optimizer, found["optimizer"].get(name), path)
    return found


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read(path)
    message = str(error.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    return message


def test_any_flipped_bit_is_seen(saved, contents, tmp_path):
    """文件任何一处翻转一位：或者拒绝，或者（翻在填充里）读出的与原来一字不差；权重里的一律拒绝。"""
    whole = bytearray(saved.read_bytes())
    path = tmp_path / LATEST
    places = {*range(0, len(whole), len(whole) // 400), *range(0, 300, 3), *range(len(whole) - 900, len(whole), 3)}
    chance = random.Random(0)
    refusals = 0
    for place in sorted(places):
        bit = 1 << chance.randrange(8)
        whole[place] ^= bit
        path.write_bytes(whole)
        whole[place] ^= bit
        try:
            found = checkpoint.load(path, for_resume=True)
        except CheckpointError:
            refusals += 1
        else:
            assert same(found, contents), f"第 {place} 字节"
    assert refusals > len(places) / 2


def test_a_flipped_bit_in_each_tensor_is_seen(saved, tmp_path):
    """每个张量里各翻转一位：torch.load 照样读入，我们拒绝。"""
    whole = saved.read_bytes()
    path = tmp_path / LATEST
    with zipfile.ZipFile(saved) as archive:
        records = [record for record in archive.infolist() if "/data/" in record.filename]
    assert len(records) > 20
    for record in records:
        start = whole.index(record.filename.encode(), record.header_offset) + len(record.filename)
        start = start + int.from_bytes(whole[record.header_offset + 28 : record.header_offset + 30], "little")
        damaged = bytearray(whole)
        damaged[start + record.file_size // 2] ^= 0x40
        path.write_bytes(damaged)
        torch.load(path, weights_only=True)
        assert "损坏" in refused(path)


def test_the_directory_of_the_archive_is_guarded(saved, contents, tmp_path):
    """zip 目录里一个张量的每一位：名字、大小、属性（翻转一位就成了「文件夹」）都不会让人读到别的内容。"""
    whole = bytearray(saved.read_bytes())
    name = b"archive/data/0"
    end = whole.rindex(name) + len(name)
    path = tmp_path / LATEST
    for place in range(end - len(name) - 46, end):
        for bit in range(8):
            whole[place] ^= 1 << bit
            path.write_bytes(whole)
            whole[place] ^= 1 << bit
            with contextlib.suppress(CheckpointError):
                assert same(checkpoint.load(path, for_resume=True), contents), f"第 {place} 字节第 {bit} 位"


@pytest.mark.parametrize("kept", [0, 1, 100, 0.25, 0.5, 0.9, -1, -100])
def test_a_cut_off_file_is_seen(saved, tmp_path, kept):
    """截断在哪里都认得出。"""
    whole = saved.read_bytes()
    path = tmp_path / LATEST
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert "损坏" in refused(path)


def test_packed_files_are_refused(saved, tmp_path):
    """压缩过的（zip 炸弹）不读，不占内存。"""
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(50_000_000) if name.endswith("/data/0") else old.read(name))
        for record in new.infolist():
            record.external_attr = 0  # 与 torch.save 写的一样，只是压缩过
    assert path.stat().st_size < 1_000_000
    with mock.patch.object(zipfile.ZipFile, "testzip", return_value=None) as unpack:
        refused(path)
    assert not unpack.called


def replaced(contents: dict, keys: tuple, value) -> dict:
    """深拷贝，把一处换成 value。"""
    made = copy.deepcopy(contents)
    place = made
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return made


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("model", "norm.weight"), torch.full((8,), math.nan)),
        (("model", "norm.weight"), torch.full((8,), -math.inf)),
        (("optimizer",), {}),
        (("optimizer", "muon"), None),
        (("optimizer", "adamw", "state"), {0: {"step": torch.tensor(1.0)}}),
        (("optimizer", "adamw", "state", 99), {}),
        (("optimizer", "adamw", "state", 0, "exp_avg"), torch.zeros(3)),
        (("optimizer", "muon", "state", 0, "momentum_buffer"), torch.zeros(3, 3)),
        (("optimizer", "adamw", "param_groups"), []),
        (("optimizer", "adamw", "param_groups", 0, "params"), [0]),
    ],
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else str(type(value).__name__),
)
def test_contents_that_cannot_be_continued_are_refused(contents, tmp_path, keys, value):
    """权重里有 nan 或 inf，优化器的状态与模型对不上：一行中文。"""
    path = tmp_path / LATEST
    torch.save(replaced(contents, keys, value), path)
    refused(path)


def test_a_finite_state_survives(contents, saved):
    """没坏的照常：读出的与存进的相同。"""
    assert same(read(saved), contents)


@pytest.mark.parametrize("section", ["config", "model_config", "corpus"])
def test_names_in_the_config_cannot_command_the_terminal(contents, tmp_path, section):
    """检查点里的文字带终端控制码：显示之前去掉，不能清屏、改标题。"""
    path = tmp_path / LATEST
    torch.save({**contents, section: {"\x1b[2J": "\x1b]0;题\x07\x1b[2J歌"}}, path)
    assert checkpoint.load(path, for_resume=True)[section] == {"?[2J": "?]0;题??[2J歌"}
