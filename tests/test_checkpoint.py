"""检查点：原子保存、安全读取、归档。"""

import os
import pickle
import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch

import tokenizer as tokenizer_module
from model import GPT, ModelConfig
from training import checkpoint
from training.checkpoint import BEST, LATEST, METRICS, CheckpointError

LINES = [f"今夜{a}在{b}里等你" for a in "我你他谁" for b in "风雨雪月灯河梦秋"] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_module.train(LINES, 400)


@pytest.fixture(scope="module")
def model(tokenizer) -> GPT:
    torch.manual_seed(0)
    return GPT(ModelConfig(tokenizer.vocab_size, max_seq_len=16, n_layers=2, n_heads=2, n_embed=8, dropout=0.1))


@pytest.fixture
def contents(model, tokenizer) -> dict:
    return checkpoint.model_contents(model, tokenizer, {"seed": 7, "lyrics_dir": "歌"}, 12, 3.5, None)


@pytest.fixture
def saved(contents, tmp_path) -> Path:
    path = tmp_path / BEST
    checkpoint.save(path, contents)
    return path


def refused(path: Path, **options) -> str:
    """读它必须得到 CheckpointError：一两行中文，写明文件；也没有库的警告漏到屏幕上。"""

    def read() -> None:
        checkpoint.restore(checkpoint.load(path, **options), path)

    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        with pytest.raises(CheckpointError) as caught:
            read()
    assert [str(warning.message) for warning in leaked if warning.category is UserWarning] == []
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    assert any("\u4e00" <= character <= "\u9fff" for character in message)
    assert str(path) in message
    return message


def test_save_and_load_return_the_same(saved, contents):
    """存进去什么，读出来就是什么；旁边不留临时文件。"""
    loaded = checkpoint.load(saved)
    assert loaded.keys() == contents.keys()
    for key in contents.keys() - {"model"}:
        assert loaded[key] == contents[key], key
    for name, value in contents["model"].items():
        assert torch.equal(loaded["model"][name], value), name
    assert os.listdir(saved.parent) == [BEST]


def test_restored_model_gives_the_same_logits(saved, model, tokenizer):
    """恢复出的模型与分词器和原来的一样用；丢弃率由调用者定。"""
    restored, restored_tokenizer = checkpoint.restore(checkpoint.load(saved), saved)
    tokens = torch.arange(12).view(1, 12)
    assert restored.config.dropout == 0.0
    assert torch.equal(restored.eval()(tokens), model.eval()(tokens))
    assert restored_tokenizer.encode("今夜我在风里") == tokenizer.encode("今夜我在风里")
    assert all(p.requires_grad and p.dtype == torch.float32 and p.device.type == "cpu" for p in restored.parameters())
    for_training, _ = checkpoint.restore(checkpoint.load(saved), saved, dropout=0.1)
    assert for_training.config == model.config


def test_restored_model_does_not_share_memory_with_the_trained_one(model, tokenizer, saved):
    """恢复出的模型可以接着训练：参数可写，一步之后变了，原模型没变。"""
    restored, _ = checkpoint.restore(checkpoint.load(saved), saved)
    before = model.embedding.weight.detach().clone()
    restored.loss(torch.tensor([[5, 6]]), torch.tensor([[6, 7]])).backward()
    torch.optim.SGD(restored.parameters(), lr=0.1).step()
    assert not torch.equal(restored.embedding.weight, before)
    assert torch.equal(model.embedding.weight, before)


def test_contents_are_those_of_the_design(contents, model):
    """顶层键与设计一致；权重名就是裸模型的，没有 torch.compile 或 DDP 的前缀，也没有 RoPE 表。"""
    assert set(contents) == set("format model model_config config tokenizer iter val_loss val_bpc data corpus".split())
    assert set(contents["model"]) == {name for name, _ in model.named_parameters()}
    assert not [name for name in contents["model"] if "_orig_mod." in name or name.startswith("module.")]


def test_resuming_asks_for_more(saved, contents, tmp_path):
    """best.pt 不能用来接着训练：说明缺什么；补全后可以。"""
    message = refused(saved, for_resume=True)
    assert "optimizer" in message
    assert "rng" in message
    extra = {"optimizer": {}, "scaler": {}, "rng": {"seed": 1}, "best_val_loss": None, "best_val_bpc": None}
    extra |= {"corpus": "c", "run_id": "r", "evaluation_due": False, "skipped_steps": 0}
    latest = tmp_path / LATEST
    checkpoint.save(latest, contents | extra)
    assert checkpoint.load(latest, for_resume=True)["run_id"] == "r"


class Evil:
    """反序列化时会新建一个文件的对象。"""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_code_in_a_file_is_never_run(contents, tmp_path, kind):
    """检查点里夹带的代码不执行，只得到一句「不是检查点」。"""
    target, path = tmp_path / "executed", tmp_path / "evil.pt"
    evil = {**contents, "config": {"a": Evil(target)}}
    if kind == "torch":
        torch.save(evil, path)
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps({"format": 1, "a": Evil(target)}))
        pickle.loads(path.read_bytes())
    assert target.exists()  # 不设防的读法确实会执行它
    target.rmdir()
    refused(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 5000, bytes(range(256)) * 40, "今夜我在风里等你\n".encode() * 50, b"PK\x03\x04" + b"x" * 500]
    + [torch.randint(256, (4096,), generator=torch.Generator().manual_seed(s)).byte().numpy().tobytes() for s in (1, 2)]
    + [b"\x80\x02}q\x00.", b"\x80\x05N."],
    ids=["empty", "zeros", "cycle", "text", "zip-head", "random1", "random2", "pickle-dict", "pickle-none"],
)
def test_files_of_another_kind_are_refused(content, tmp_path):
    """空文件、文本、随机字节、普通 pickle：都是一句中文。"""
    path = tmp_path / "other.pt"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("value", [{"weight": torch.zeros(2)}, [1, 2], torch.zeros(3), {"format": 99}, {}, "今夜"])
def test_torch_files_that_are_no_checkpoint_are_refused(value, tmp_path):
    """torch.save 存的别的东西，以及别的版本。"""
    path = tmp_path / "other.pt"
    torch.save(value, path)
    assert "不是本仓库的检查点" in refused(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    """不存在的文件、把文件夹当文件。"""
    assert "找不到" in refused(tmp_path / "none.pt")
    refused(tmp_path)


@pytest.mark.parametrize("key", "model model_config config tokenizer iter val_loss val_bpc".split())
def test_a_missing_key_is_named(contents, tmp_path, key):
    """缺了哪一项，就写出哪一项。"""
    path = tmp_path / BEST
    torch.save({name: value for name, value in contents.items() if name != key}, path)
    assert key in refused(path)


def test_what_earlier_checkpoints_lack(contents, tmp_path):
    """早先的检查点没有语料的统计，best.pt 里也没有语料的指纹：照样读。"""
    path = tmp_path / BEST
    torch.save({name: value for name, value in contents.items() if name not in ("data", "corpus")}, path)
    found = checkpoint.load(path)
    assert (found["data"], found["corpus"]) == ({}, None)


def changed(contents: dict, section: str, **values) -> dict:
    return {**contents, section: {**contents[section], **values}}


MISFITS = {
    "wider": lambda c: changed(c, "model_config", n_embed=16),
    "deeper": lambda c: changed(c, "model_config", n_layers=3),
    "shallower": lambda c: changed(c, "model_config", n_layers=1),
    "vocab": lambda c: changed(c, "model_config", vocab_size=c["model_config"]["vocab_size"] + 1),
    "no-heads": lambda c: changed(c, "model_config", n_heads=0),
    "unknown-key": lambda c: changed(c, "model_config", unknown=1),
    "no-weights": lambda c: {**c, "model": {}},
    "shape": lambda c: changed(c, "model", **{"norm.bias": torch.zeros(9)}),
    "extra-weight": lambda c: changed(c, "model", **{"extra.weight": torch.zeros(2)}),
    "no-tokenizer": lambda c: {**c, "tokenizer": b""},
    "cut-tokenizer": lambda c: {**c, "tokenizer": c["tokenizer"][:-40]},
}


@pytest.mark.parametrize("change", MISFITS.values(), ids=MISFITS)
def test_contents_that_do_not_fit_each_other_are_refused(contents, tmp_path, change):
    """权重、模型配置、分词器互相对不上：一句中文，不是回溯。"""
    path = tmp_path / BEST
    checkpoint.save(path, change(contents))
    refused(path)


def test_a_tokenizer_of_another_size_is_refused(contents, tmp_path):
    """分词器本身完好，词表大小与模型不同。"""
    other = tokenizer_module.train([line[:4] for line in LINES], 300)
    assert other.vocab_size != contents["model_config"]["vocab_size"]
    path = tmp_path / BEST
    checkpoint.save(path, {**contents, "tokenizer": other.model_bytes})
    assert "词表" in refused(path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
@pytest.mark.parametrize("written", [0, 1, 5000])
def test_a_save_that_fails_half_way_leaves_the_old_one(saved, contents, monkeypatch, written, error):
    """写到一半失败：错误传给调用者，旧检查点照常可读，不留临时文件。"""
    before = saved.read_bytes()

    def broken(value, file, *arguments, **options):
        file.write(before[:written])
        file.flush()
        raise error

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(type(error)):
        checkpoint.save(saved, {**contents, "iter": 99})
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert checkpoint.load(saved)["iter"] == 12
    assert os.listdir(saved.parent) == [BEST]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_save_that_cannot_be_finished_leaves_the_old_one(saved, contents, monkeypatch, function):
    """落盘或改名失败时也一样；在改名之前，原文件始终是旧的。"""
    before = saved.read_bytes()

    def broken(*arguments):
        assert saved.read_bytes() == before
        raise OSError("disk gone")

    monkeypatch.setattr(os, function, broken)
    with pytest.raises(OSError, match="disk gone"):
        checkpoint.save(saved, {**contents, "iter": 99})
    monkeypatch.undo()
    assert checkpoint.load(saved)["iter"] == 12
    assert os.listdir(saved.parent) == [BEST]


def test_the_file_is_on_disk_before_it_takes_the_name(saved, contents, monkeypatch):
    """先 fsync 再改名；改名时临时文件已经完整。"""
    order = []
    original_fsync, original_replace = os.fsync, os.replace

    def fsync(descriptor):
        order.append("fsync")
        original_fsync(descriptor)

    def replace(source, target):
        order.append("replace")
        assert Path(source).parent == saved.parent
        assert checkpoint.load(Path(source))["iter"] == 99
        original_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    checkpoint.save(saved, {**contents, "iter": 99})
    assert order[:2] == ["fsync", "replace"]
    assert checkpoint.load(saved)["iter"] == 99


def test_archive_moves_what_a_run_made(saved, tmp_path):
    """旧结果整个移走，内容不变，别的文件不动；没有可移的返回 None。"""
    (tmp_path / METRICS).write_text("{}\n")
    (tmp_path / "note.txt").write_text("我的")
    before = saved.read_bytes()
    target = checkpoint.archive(tmp_path)
    assert target.parent == tmp_path
    assert target.name.startswith("archive-")
    assert sorted(os.listdir(target)) == sorted([BEST, METRICS])
    assert (target / BEST).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted([target.name, "note.txt"])
    assert checkpoint.archive(tmp_path) is None
    assert checkpoint.archive(tmp_path / "nowhere") is None


def test_archives_of_the_same_second_do_not_collide(saved, tmp_path, monkeypatch):
    """同一秒归档几次，各得一个文件夹，什么都不被覆盖。"""
    monkeypatch.setattr(time, "strftime", lambda *_: "archive-20250101-000000")
    content = saved.read_bytes()
    targets = []
    for number in range(3):
        saved.write_bytes(content + bytes([number]))
        targets.append(checkpoint.archive(tmp_path))
    assert len(set(targets)) == 3
    assert [(target / BEST).read_bytes()[-1] for target in targets] == [0, 1, 2]


def test_a_copied_checkpoint_is_self_contained(saved, tmp_path, model):
    """只有 best.pt 一个文件，放到哪里都能用。"""
    elsewhere = tmp_path / "别处 with space" / "我的.pt"
    elsewhere.parent.mkdir()
    shutil.move(saved, elsewhere)
    restored, tokenizer = checkpoint.restore(checkpoint.load(elsewhere), elsewhere)
    assert tokenizer.vocab_size == restored.config.vocab_size == model.config.vocab_size
