"""随仓库来的小模型：就是模型卡上的那个文件，装好就能写。"""

import hashlib
import re

import pytest
import torch

import generation
from training import checkpoint
from writing.loading import READY, load_writer

REPOSITORY = checkpoint.Path(__file__).resolve().parent.parent
PATH = REPOSITORY / READY
GREEDY = "今夜我，\n我曾在\n\n我坐在门槛上，\n我底心，\n我底心，\n我底心心，\n我底心心，\n我底心心，"


@pytest.fixture(scope="module")
def contents():
    return checkpoint.load(PATH)


def test_the_file_is_the_one_on_the_card():
    content = PATH.read_bytes()
    card = (REPOSITORY / "models" / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(content).hexdigest() in card
    assert len(content) <= 12_000_000
    assert re.search(r"CC0", card)


def test_only_data(contents):
    """只有数据，不执行代码；至多 5.8M 参数；没有谁的机器上的路径。"""
    assert torch.load(PATH, weights_only=True)["format"] == checkpoint.FORMAT
    model, _ = checkpoint.restore(contents, PATH)
    assert sum(model.parameter_counts()) <= 5_800_000
    assert not [value for value in contents["config"].values() if "/" in str(value)]


def test_its_greedy_song(contents):
    model, tokenizer = checkpoint.restore(contents, PATH)
    sampling = generation.Sampling(max_tokens=40, temperature=0)
    steps = generation.generate(
        model.eval(), tokenizer.song("今夜我"), sampling, tokenizer.eos_id, tokenizer.never_written
    )
    assert "今夜我" + tokenizer.decode(token for step in steps for _, token in step) == GREEDY


def test_a_missing_checkpoint_names_it(tmp_path):
    """没有 best.pt 时说出这个文件与怎样训练，从不自己换上它。"""
    with pytest.raises(checkpoint.CheckpointError, match=re.escape(READY)) as error:
        load_writer(tmp_path / "best.pt", "cpu", "fp32")
    assert "python train.py" in str(error.value)
