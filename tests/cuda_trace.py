"""训练与写歌的每一步在 cuda 设备上走一遍，没有显卡：由 `bash tests/cuda_trace.sh` 启动。

那里的 torch 是 CUDA 版，载入了一块假的卡（tests/cuda_trace.c）；张量是假的，只有形状、类型与设备，真的代码照走。
看得见：哪个算子、什么精度、在哪个设备上、回主机问几次。看不见：数值，Triton 的内核，CUDA 图，NCCL。
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._subclasses.fake_tensor as fake_tensor
from tracing import Trace

import model as model_module
from generation import Sampling, TorchStep, draw, generate
from model import GPT, ModelConfig, rope_cos_sin
from optimizer import WeightAverage, build_optimizers
from train import Trainer
from training import skipped
from training.device import Runtime, device_name, native_half
from training.distillation import Distillation
from training.fallbacks import ForwardBackward
from training.memory import first_micro_batch, free_bytes
from training.processes import Processes
from training.progress import Progress
from training.skipped import SkippedSteps, StepResult
from training.validation import validation_loss
from writing.cuda_graph import StaticCache
from writing.drafts import Composer

CARD = torch.device("cuda:0")
SHAPE = ModelConfig(vocab_size=10000, max_seq_len=1024, n_layers=2, n_heads=12, n_embed=768, dropout=0.1)
ROWS = 8
COPIES = {"aten._to_copy.default", "aten.lift_fresh.default", "aten.detach.default"}
COPIES |= {"prim.device.default", "aten.empty.memory_format"}  # 问设备；Flash Attention 的随机状态
FLASH = "aten._scaled_dot_product_flash_attention.default"


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """假张量；数得出 `tolist`：它不是一个算子。"""
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda *given: None)
    monkeypatch.setattr(fake_tensor.FakeTensorMode, "avoid_device_init", True)
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None))
    monkeypatch.setattr(
        skipped.Unread, "read", lambda unread: StepResult(unread.iteration, 1.0, 1.0, unread.learning_rate)
    )
    monkeypatch.setattr("generation.token_mask", mask)
    monkeypatch.setattr("writing.drafts.token_mask", mask)
    lists = []

    def tolist(tensor):
        lists.append(tensor.device.type)
        return np.ones(tuple(tensor.shape), dtype=int).tolist()

    monkeypatch.setattr(fake_tensor.FakeTensor, "tolist", tolist)
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
        yield lists


def mask(ids, vocab_size, device):
    """`token_mask` 用一串下标写入，假的卡上不行；它只在一首歌的开头用。"""
    return torch.zeros(vocab_size, dtype=torch.bool, device=device)


def on_card(config: ModelConfig = SHAPE) -> GPT:
    """假的卡上填不了随机数：在 CPU 上建，权重换成卡上的空张量。"""
    model = GPT(config)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty(parameter.shape, device=CARD))
    model.rope = rope_cos_sin(0, config.max_seq_len, config.head_dim, config.rope_base, CARD)
    return model


def trainer_on_card(optimizer: str, micro: int, half: torch.dtype = torch.bfloat16) -> Trainer:
    """除了语料、文件与显示，都是 `Trainer` 自己的。"""
    made = object.__new__(Trainer)
    made.config = SimpleNamespace(learning_rate=1e-3, min_lr=1e-4, train_iters=100, grad_clip=1.0)
    made.environment, made.processes = Runtime(CARD, half, Processes()), Processes()
    made.progress, made.warmup = Progress(0), 2
    made.model = on_card()
    made.optimizers = build_optimizers(optimizer, made.model, 1e-3, 2e-3, 0.1, native_half(CARD))
    made.average = WeightAverage(made.model, 10)
    made.scaler = torch.amp.GradScaler("cuda", enabled=made.environment.needs_scaler)
    made.steps = SkippedSteps(made.progress, made.scaler, True, None)
    made.forward_backward = ForwardBackward(
        made.model, made.scaler, made.environment, 0, ROWS * SHAPE.max_seq_len, micro, False, print
    )
    batch = [torch.zeros(ROWS, SHAPE.max_seq_len, dtype=torch.int64) for _ in range(2)]
    made.prefetcher = SimpleNamespace(at=lambda iteration: batch)
    return made


def second_step(trainer: Trainer, answer: float | None = None) -> Trace:
    with Trace(answer):  # 优化器的状态这时才有
        trainer.step()
    with Trace(answer) as trace:
        trainer.step()
    return trace


def assert_stays_on_the_card(trace: Trace, half: torch.dtype = torch.bfloat16) -> None:
    assert trace.attention == {half}
    assert trace.reads == []
    assert set(trace.on_cpu) <= COPIES
    if half is torch.bfloat16:  # GradScaler 自己用 float64 求放大倍数的倒数，一个数
        assert torch.float64 not in trace.results


def test_the_card_is_seen_and_autocast_is_on():
    """假的卡看得见，混合精度真的开着：不然下面各项什么也没有查。"""
    assert torch.cuda.is_available()
    assert "3090" in device_name(CARD)
    assert native_half(CARD) == torch.bfloat16
    assert free_bytes(CARD) == 24 * 2**30
    with Runtime(CARD, torch.bfloat16, Processes()).autocast():
        assert torch.is_autocast_enabled("cuda")
        assert (torch.empty(2, 2, device=CARD) @ torch.empty(2, 2, device=CARD)).dtype == torch.bfloat16


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("micro", [8, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step(monkeypatch, optimizer, micro, checkpointing):
    """前向、反向、裁剪、优化器、滑动平均：bf16 的 Flash Attention，不回主机问一个数，除了批次与结果没有在 CPU 上的。"""
    monkeypatch.setattr(model_module, "MOST_LOGITS", 2**24)  # 损失分成几块
    trainer = trainer_on_card(optimizer, micro)
    trainer.model.activation_checkpointing = checkpointing
    trace = second_step(trainer)
    assert_stays_on_the_card(trace)
    assert FLASH in trace.names
    assert any("flash_attention_backward" in name for name in trace.names)
    assert any("log_softmax_backward" in name for name in trace.names)
    copies = [name for name in trace.on_cpu if name == "aten._to_copy.default"]
    assert len(copies) <= 3  # 输入、目标上去，损失与范数下来


def test_a_step_with_songs_apart():
    """分歌的遮罩也在卡上。"""
    trainer = trainer_on_card("muon", 8)
    trainer.model.song_start = 1
    assert_stays_on_the_card(second_step(trainer))


def test_a_step_with_a_teacher():
    """老师的前向、蒸馏的损失也是。"""
    trainer = trainer_on_card("muon", 3)
    lesson = object.__new__(Distillation)
    lesson.model, lesson.teachers = trainer.model, [on_card().eval().requires_grad_(False)]
    trainer.forward_backward.loss_function = lesson.loss
    trace = second_step(trainer)
    assert_stays_on_the_card(trace)
    assert trace.names.count(FLASH) == 2 * SHAPE.n_layers * 3


def test_a_step_in_fp16():
    """没有 bf16 的卡：放大梯度，也由设备自己决定跳不跳过。"""
    trace = second_step(trainer_on_card("muon", 8, torch.float16))
    assert_stays_on_the_card(trace, torch.float16)
    assert any("amp_update_scale" in name for name in trace.names)


def test_a_first_micro_batch_for_this_card():
    """24 GB：64 × 1024 的默认配置头一次就试装得下、够快的 32 个序列。"""
    config = SimpleNamespace(max_seq_len=1024, optimizer="muon", average=0.05, train_iters=2000)
    model = on_card(ModelConfig(10000, 1024, 12, 12, 768, dropout=0.1))
    runtime = Runtime(CARD, torch.bfloat16, Processes())
    assert first_micro_batch(model, config, runtime, 64, free_bytes(CARD)) == 32


def test_a_validation_batch():
    """每批只在最后取一次损失。"""
    runtime = Runtime(CARD, torch.bfloat16, Processes())
    tokens, characters = np.ones(6000, dtype=np.uint16), np.ones(10000, dtype=np.int64)
    with Trace(answer=1.0) as trace:
        validation_loss(on_card(), tokens, characters, runtime, 5, 2, lambda: 0)
    assert trace.attention == {torch.bfloat16}
    assert FLASH in trace.names
    assert trace.reads == ["cuda"] * 3


def in_half() -> GPT:
    model = on_card().eval().requires_grad_(False)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(parameter.bfloat16(), requires_grad=False)
    return model


def test_reading_a_prompt_and_decoding():
    """读前文、接着一个一个地走、录图的固定形状的一步：都在卡上，不问。"""
    model = in_half()
    with torch.inference_mode():
        cache = model.new_cache(4, 200)
        plain = TorchStep(model, cache)
        prompt, token = (torch.zeros(4, count, dtype=torch.int64, device=CARD) for count in (12, 1))
        with Trace() as trace:
            plain(prompt)
            plain(token)
            plain(prompt)
        assert_stays_on_the_card(trace)
        static = TorchStep(model, StaticCache(cache))
        with Trace() as trace:
            static(token)
        assert_stays_on_the_card(trace)
        assert not trace.on_cpu


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0), Sampling(top_k=40, repetition_penalty=1.2)], ids=str
)
def test_sampling(sampling):
    """抽一个词元：不问，都在卡上。"""
    logits, uniform = torch.empty(4, 10000, device=CARD).bfloat16(), torch.empty(4, device=CARD)
    banned = torch.zeros(10000, dtype=torch.bool, device=CARD)
    seen = torch.zeros(4, 10000, dtype=torch.bool, device=CARD)
    with Trace() as trace:
        draw(logits, seen, banned, uniform, sampling)
    assert (trace.reads, trace.on_cpu) == ([], [])


def test_writing_asks_once_a_token(fakes):
    """八首歌一起写：每个词元问一次，不是每首一次。"""
    with Trace(answer=1) as trace:
        steps = list(generate(in_half(), [1, 5], Sampling(max_tokens=20), 2, num_samples=8))
    assert len(steps) == 20
    assert fakes == ["cuda"] * 20
    assert "cuda" not in trace.reads


def test_lines_ask_twice_a_token(fakes):
    """一行八稿：每个词元问两次（抽到什么、它的概率），不是每稿一次；打分一次。"""
    free = SimpleNamespace(
        text="字", forbidden=lambda: np.zeros(10000, dtype=bool), refuses=lambda token: False, push=lambda token: None
    )
    composer = Composer(in_half(), [1, 5], Sampling(), [2, 3], candidates=8)
    counted = itertools.count()
    with Trace(answer=1) as trace:
        composer._drafts(lambda: next(counted) and free or free, 8, 10)
    assert fakes.count("cuda") == 2 * 10
    assert "cuda" not in trace.reads
    fakes.clear()
    with Trace(answer=1) as trace:
        composer.score([[4, 5, 6], [7, 8], [9]])
    assert fakes.count("cuda") + trace.reads.count("cuda") <= 1


@pytest.mark.parametrize("wrong", ["item", "boolean", "float64", "cpu", "fp32"])
def test_what_is_wrong_is_seen(wrong):
    """各样毛病放进真的一步里，都看得出来。"""
    trainer = trainer_on_card("muon", 8)
    loss = trainer.forward_backward.loss_function

    def broken(x, y):
        found = loss(x, y)
        if wrong == "item":
            found = found + found.item()
        elif wrong == "boolean":
            found = found + x[x > 0].sum()
        elif wrong == "float64":
            found = found + found.double()
        elif wrong == "cpu":
            found = found + x.cpu().sum().to(CARD)
        else:
            with torch.autocast("cuda", enabled=False):
                found = found + loss(x, y)
        return found

    trainer.forward_backward.loss_function = broken
    with pytest.raises((AssertionError, fake_tensor.DynamicOutputShapeException)):
        assert_stays_on_the_card(second_step(trainer, answer=0.0))
