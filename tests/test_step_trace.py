"""真正的一步里走过的每个算子：精度对，不回主机问，编译成一张图。"""

import functools

import pytest
import torch
from torch._dynamo.utils import counters
from tracing import Trace

import model as model_module
from train import Trainer
from training.validation import validation_loss


@pytest.fixture
def traced_run(run, monkeypatch):
    """traced_run(参数…) → 训练里第二步走过的。"""

    def call(*extra: str) -> Trace:
        trace = Trace()
        original = Trainer.step

        def step(self):
            if self.progress.iteration != 1:
                return original(self)
            with trace:
                return original(self)

        monkeypatch.setattr(Trainer, "step", step)
        monkeypatch.setattr("training.device.native_half", lambda device: torch.bfloat16)
        code, *_ = run("traced", "--use_amp", "true", "--dropout", "0", "--train_iters", "3", *extra)
        assert code == 0
        return trace

    return call


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("extra", [(), ("--activation_checkpointing", "true", "--micro_batch_size", "3")])
def test_a_step_never_asks_the_device(traced_run, monkeypatch, optimizer, extra):
    """混合精度的一步（损失分块、几个微批次、重算各层）：注意力的输入是 bf16，没有 float64，不回主机问一个数。"""
    monkeypatch.setattr(model_module, "MOST_LOGITS", 4000)
    trace = traced_run("--optimizer", optimizer, *extra)
    assert trace.attention == {torch.bfloat16}
    assert torch.float64 not in trace.results
    assert trace.reads == []
    assert any("log_softmax" in name for name in trace.names)


def test_the_trace_sees_what_it_looks_for():
    """问一个数、float64、fp32 的注意力，各自都看得见。"""
    with Trace() as trace:
        ones = torch.ones(1, 1, 4, 8)
        torch.nn.functional.scaled_dot_product_attention(ones, ones, ones, is_causal=True)
        (ones.double().sum() > 1).item()
        ones[ones > 0]
    assert trace.attention == {torch.float32}
    assert torch.float64 in trace.results
    assert len(trace.reads) == 2


def test_a_validation_batch_is_in_half_precision(run, monkeypatch):
    """评估也走混合精度。"""
    traces = []

    def traced(*arguments):
        with Trace() as trace:
            found = validation_loss(*arguments)
        traces.append(trace)
        return found

    monkeypatch.setattr("train.validation_loss", traced)
    monkeypatch.setattr("training.device.native_half", lambda device: torch.bfloat16)
    run("evaluated", "--use_amp", "true", "--dropout", "0", "--train_iters", "1")
    assert traces
    assert all(trace.attention == {torch.bfloat16} for trace in traces)


@pytest.mark.slow
def test_the_compiled_chunked_loss_is_one_graph(run, monkeypatch):
    """编译并且分块的损失（显卡上的默认）：没有断开，20 步连同评估没有重新编译。"""
    monkeypatch.setattr(model_module, "MOST_LOGITS", 4000)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    code, out, _ = run("compiled", "--use_compile", "true", "--train_iters", "20", "--eval_interval", "5")
    assert code == 0
    assert "不可用" not in out
    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["stats"]["calls_captured"] > 100
