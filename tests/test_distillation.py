"""向老师学：损失照公式，接得上，用错了说得清。"""

import pytest
import torch
from tiny import assert_same_run, stop_at

from model import GPT, ModelConfig
from terminal import UserError
from training import checkpoint, distillation
from training.checkpoint import CheckpointError
from training.distillation import TEACHER_SHARE, TEMPERATURE, Distillation

CONFIG = ModelConfig(vocab_size=40, max_seq_len=16, n_layers=2, n_heads=2, n_embed=16)


@pytest.fixture
def base(run):
    return run("base")[2] / "best.pt"


@pytest.mark.parametrize("most", [2**26, 500])
def test_the_loss_is_the_formula(base, monkeypatch, most):
    """一次算完与分块算相同，都等于逐个词元照公式算的；补齐的不计。"""
    monkeypatch.setattr(distillation, "MOST_LOGITS", most)
    contents = checkpoint.load(base)
    teacher, tokenizer = checkpoint.restore(contents, base)
    teacher.eval()
    torch.manual_seed(0)
    student = GPT(teacher.config)
    tokens = torch.randint(tokenizer.vocab_size, (3, 20))
    targets = tokens.roll(-1, 1)
    targets[:, -4:] = -1
    other = dict(contents, model={name: weight * 0.5 for name, weight in contents["model"].items()})
    second = checkpoint.restore(other, base)[0].eval()
    found = Distillation(student, [contents, other], tokenizer.model_bytes, torch.device("cpu")).loss(tokens, targets)
    expected = 0.0
    with torch.no_grad():
        mine, theirs = student(tokens), [teacher(tokens), second(tokens)]
    for row, place in [(row, place) for row in range(3) for place in range(16)]:
        wanted = sum(torch.softmax(logits[row, place] / TEMPERATURE, -1) for logits in theirs) / 2
        towards = -(wanted * torch.log_softmax(mine[row, place] / TEMPERATURE, -1)).sum()
        true = -torch.log_softmax(mine[row, place], -1)[targets[row, place]]
        expected += (1 - TEACHER_SHARE) * true + TEACHER_SHARE * TEMPERATURE**2 * towards
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    found.backward()
    assert student.blocks[0].attention.qkv.weight.grad.abs().sum() > 0


def test_a_student_resumes_bit_for_bit(run, base, monkeypatch):
    """用老师的分词器；中断再接，与不中断的逐位相同。"""
    options = ("--teacher", f"{base},{base}")
    _, _, whole = run("whole", *options)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        run("parts", *options)
    run("parts", *options)
    assert_same_run(whole, whole.parent / "parts")
    plain = run("plain")[2]
    one, other = (checkpoint.load(folder / "latest.pt")["model"] for folder in (whole, plain))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert checkpoint.load(whole / "best.pt")["tokenizer"] == checkpoint.load(base)["tokenizer"]


def test_a_wrong_teacher_is_one_line(run, base, tmp_path):
    with pytest.raises(CheckpointError, match="找不到检查点"):
        run("none", "--teacher", str(tmp_path / "没有.pt"))
    stranger = tmp_path / "stranger.pt"
    checkpoint.save(stranger, checkpoint.load(base) | {"tokenizer": b"x"})
    with pytest.raises(UserError, match="分词器不同"):
        run("two", "--teacher", f"{base},{stranger}")
    with pytest.raises(UserError, match="分词器与这次训练的不同"):
        run("tuned", "--init_from", str(base), "--teacher", str(stranger))
