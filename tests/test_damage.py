"""放坏了的、伪造的检查点：要么认出，要么读出的与原来相同。"""

import contextlib
import copy
import math
import random
import zipfile
from pathlib import Path

import pytest
import torch

import checkpoint
import tokenizer as tokenizer_module
from checkpoint import LATEST, CheckpointError
from model import GPT, ModelConfig
from optimizer import build_optimizers

LINES = [f"今夜{a}在{b}里等你" for a in "我你他谁" for b in "风雨雪月灯河梦秋"] * 4


def build() -> tuple[GPT, dict[str, torch.optim.Optimizer], tokenizer_module.Tokenizer]:
    torch.manual_seed(0)
    tokenizer = tokenizer_module.train(LINES, 400)
    model = GPT(ModelConfig(tokenizer.vocab_size, max_seq_len=16, n_layers=2, n_heads=2, n_embed=8))
    optimizers = build_optimizers("muon", model, 1e-3, 1e-3, 0.1)
    model.loss(torch.tensor([[5, 6]]), torch.tensor([[6, 7]])).backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return model, optimizers, tokenizer


@pytest.fixture(scope="module")
def contents() -> dict:
    """一份可以接着训练的检查点的内容。"""
    model, optimizers, tokenizer = build()
    made = checkpoint.model_contents(model, tokenizer, {"seed": 7, "lyrics_dir": "歌"}, 12, 3.5, 4.5)
    return made | {
        "optimizer": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
        | {"_growth_tracker": 3},
        "rng": {"seed": 7},
        "best_val_loss": 3.5,
        "best_val_bpc": 4.5,
        "evaluation_due": False,
        "skipped_steps": 0,
        "corpus": "ab" * 32,
        "run_id": "0123456789abcdef",
    }


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
    if found["scaler"]:
        torch.amp.GradScaler("cpu").load_state_dict(found["scaler"])
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
    places = set(range(0, len(whole), max(1, len(whole) // 1500)))
    places |= set(range(0, 600, 3)) | set(range(len(whole) - 2400, len(whole), 3))
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
    """zip 目录里的每一位：名字、大小、属性（翻转一位就成了「文件夹」）都不会让人读到别的内容。"""
    whole = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        start = archive.start_dir
    path = tmp_path / LATEST
    for place in range(start, start + 180):
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


def repacked(saved: Path, path: Path, change) -> Path:
    """按 change(记录名, 内容) → [(记录名, 内容, 压缩方式)] 重写 zip。"""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for record in old.infolist():
            for name, content, method in change(record.filename, old.read(record)):
                new.writestr(name, content, method)
    return path


def test_packed_files_are_refused(saved, tmp_path):
    """压缩过的、记录比文件还大的（zip 炸弹）不读，不占内存。"""
    deflated = repacked(saved, tmp_path / "deflated.pt", lambda name, content: [(name, content, zipfile.ZIP_DEFLATED)])
    refused(deflated)
    zeros = bytes(50_000_000)
    bomb = repacked(
        saved,
        tmp_path / "bomb.pt",
        lambda name, content: [(name, zeros if name.endswith("/data/0") else content, zipfile.ZIP_DEFLATED)],
    )
    assert bomb.stat().st_size < 1_000_000
    refused(bomb)


def test_rearranged_files_are_refused_or_the_same(saved, contents, tmp_path):
    """少一条记录、记录换了名、两份接在一起：拒绝，或读出的与原来相同。"""
    stored = zipfile.ZIP_STORED
    refused(
        repacked(saved, tmp_path / "less.pt", lambda n, c: [] if n.endswith("/data/3") else [(n, c, stored)]),
    )
    refused(repacked(saved, tmp_path / "named.pt", lambda n, c: [(n + "x" if n.endswith("/data/3") else n, c, stored)]))
    glued = tmp_path / "glued.pt"
    glued.write_bytes(saved.read_bytes() * 2)
    with contextlib.suppress(CheckpointError):
        assert same(read(glued), contents)


def replaced(contents: dict, keys: tuple, value) -> dict:
    """深拷贝，把一处换成 value。"""
    made = copy.deepcopy(contents)
    place = made
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return made


HUGE = torch.zeros(1).expand(10**12)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("model_config", "n_layers"), 10**9),
        (("model_config", "vocab_size"), 10**12),
        (("model_config", "n_embed"), 2**40),
        (("model_config", "max_seq_len"), 1.5),
        (("model_config", "n_heads"), True),
        (("model_config", "rope_base"), math.nan),
        (("model_config", "rope_base"), -1.0),
        (("model_config", "layer_norm_eps"), math.inf),
        (("model_config", "layer_norm_eps"), "1e-5"),
        (("model", "norm.weight"), torch.zeros(1).expand(8)),
        (("model", "norm.weight"), HUGE),
        (("model", "norm.weight"), torch.zeros(8, dtype=torch.int64)),
        (("model", "norm.weight"), torch.zeros(8, dtype=torch.complex64)),
        (("model", "norm.weight"), torch.zeros(8).to_sparse()),
        (("model", "norm.weight"), torch.zeros(8, device="meta")),
        (("model", "norm.weight"), torch.full((8,), math.nan)),
        (("model", "norm.weight"), [1.0] * 8),
        (("model", 3), torch.zeros(8)),
        (("iter",), -1),
        (("iter",), True),
        (("iter",), 1.0),
        (("val_loss",), "3.5"),
        (("rng", "seed"), "7"),
        (("rng", "seed"), -1),
        (("rng", "seed"), 2**80),
        (("rng",), {}),
        (("run_id",), "../../etc"),
        (("run_id",), "\x1b[2J"),
        (("corpus",), b"ab"),
        (("scaler",), {"scale": "x"}),
        (("scaler", "growth_factor"), None),
        (("skipped_steps",), -1),
        (("evaluation_due",), 1),
        (("optimizer",), {}),
        (("optimizer", "adamw"), None),
        (("optimizer", "adamw", "state"), []),
        (("optimizer", "adamw", "state", 0), {"step": torch.tensor(1.0)}),
        (("optimizer", "adamw", "state", 0, "exp_avg"), torch.zeros(3)),
        (("optimizer", "adamw", "state", 0, "exp_avg"), "x"),
        (("optimizer", "adamw", "state", 0, "exp_avg_sq"), HUGE),
        (("optimizer", "adamw", "state", 0, "step"), None),
        (("optimizer", "adamw", "state", 99), {}),
        (("optimizer", "muon"), None),
        (("optimizer", "muon", "state", 0, "momentum_buffer"), torch.zeros(3, 3)),
        (("optimizer", "muon", "state", 0), {}),
        (("optimizer", "adamw", "param_groups"), []),
        (("optimizer", "adamw", "param_groups", 0, "params"), [0]),
    ],
    ids=lambda value: "/".join(map(str, value)) if isinstance(value, tuple) else str(type(value).__name__),
)
def test_forged_contents_are_refused(contents, tmp_path, keys, value):
    """大小、类型、形状不对的内容：一行中文，不占内存，不卡住。"""
    path = tmp_path / LATEST
    torch.save(replaced(contents, keys, value), path)
    assert path.stat().st_size < 1_000_000
    refused(path)


def test_a_finite_state_survives(contents, saved):
    """没坏的照常：读出的与存进的相同（上面的拒绝不是因为什么都拒绝）。"""
    assert same(read(saved), contents)


def nodes(value, path=()):
    """嵌套结构里的每一处。"""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from nodes(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from nodes(value[index], (*path, index))


def test_any_changed_node_is_refused_or_harmless(contents, tmp_path):
    """任意一处换成别的东西或删去：或者一行中文，或者照常读出；没有别的错误。"""
    chance = random.Random(3)
    places = list(nodes(contents))
    others = [None, True, -5, 10**30, 1.5, math.nan, "歌", "\x00", b"", [], {}, {"a": []}, (), torch.zeros(0), HUGE]
    path = tmp_path / LATEST
    outcomes = {"refused": 0, "read": 0}
    for _ in range(400):
        keys = chance.choice(places)
        made = replaced(contents, keys, chance.choice(others))
        if chance.random() < 0.2:
            place = made
            for key in keys[:-1]:
                place = place[key]
            del place[keys[-1]]
        torch.save(made, path)
        try:
            read(path)
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def test_a_garbled_tokenizer_is_refused_or_works(contents, tmp_path):
    """分词器的字节坏了：拒绝，或照样能编码；进程不崩溃。"""
    chance = random.Random(4)
    path = tmp_path / LATEST
    for _ in range(150):
        garbled = bytearray(contents["tokenizer"])
        for _ in range(chance.choice((1, 3, 30))):
            garbled[chance.randrange(len(garbled))] = chance.randrange(256)
        try:
            _, tokenizer = checkpoint.restore({**contents, "tokenizer": bytes(garbled)}, path)
        except CheckpointError:
            continue
        tokenizer.decode(tokenizer.encode("今夜我在风里"))


def test_names_in_the_config_cannot_command_the_terminal(contents, saved, tmp_path):
    """检查点里的文字带终端控制码：显示之前去掉，不能清屏、改标题。"""
    path = tmp_path / LATEST
    torch.save(replaced(contents, ("config", "lyrics_dir"), "\x1b]0;题\x07\x1b[2J歌"), path)
    found = checkpoint.load(path, for_resume=True)
    assert found["config"]["lyrics_dir"] == "?]0;题??[2J歌"
