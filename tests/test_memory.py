"""显存的估计，与随它而定的微批次。"""

import dataclasses

import pytest
import torch

import flags
from model import GPT, ModelConfig
from terminal import is_out_of_memory
from training.device import Runtime
from training.memory import activation_bytes, first_micro_batch, fixed_bytes, step_bytes
from training.processes import Processes

MEASURED = {64: 26.33, 32: 14.2, 16: 7.94}  # 微批次 → 编译后的显存峰值（GiB），H100 上量的，默认的 85M


def saved_bytes(model: GPT, rows: int) -> int:
    """前向时 autograd 留下的张量共多少字节；权重不算，共用内存的算一次。"""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found, kept = {}, []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # 不放，地址才不会给了别人
        return tensor

    tokens = torch.randint(model.config.vocab_size, (rows, model.config.max_seq_len))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        model.hidden(tokens).sum()
    return sum(found.values())


@pytest.mark.parametrize(("layers", "width", "rows"), [(4, 128, 2), (6, 192, 4), (12, 256, 1)])
@pytest.mark.parametrize("recomputing", [False, True])
def test_estimate_is_what_autograd_keeps(layers, width, rows, recomputing):
    """逐步执行、混合精度：估计与 autograd 真正留下的相差不到 15%；重算各层时，估计另含正在重算的一层。"""
    model = GPT(ModelConfig(200, 128, layers, 4, width)).train()
    model.activation_checkpointing = recomputing
    estimate = activation_bytes(model, rows * 128, mixed=True)
    found = saved_bytes(model, rows)
    if recomputing:
        model.activation_checkpointing = False
        found += saved_bytes(model, rows) / layers
    assert estimate == pytest.approx(found, rel=0.15)


@pytest.fixture(scope="module")
def default():
    config = flags.resolve([], "gpu", "train.py", "")
    c = config
    with torch.device("meta"):
        model = GPT(ModelConfig(c.bpe_vocab_size, c.max_seq_len, c.n_layers, c.n_heads, c.n_embed, c.dropout))
    return model, config


@pytest.mark.parametrize("rows", MEASURED)
def test_estimate_of_the_default_on_a_gpu(default, rows):
    """默认的 85M：与 H100 上量到的峰值相差不到 5%。"""
    assert step_bytes(*default, rows, mixed=True) / 2**30 == pytest.approx(MEASURED[rows], rel=0.05)


@pytest.mark.parametrize(("gigabytes", "expected"), [(24, 32), (16, 32), (12, 16), (8, 8), (6, 8), (4, 2), (3, 1)])
def test_first_micro_batch_fits_the_card(default, gigabytes, expected):
    """常见的卡（装了桌面，少半个 GB），默认的配置头一次就装得下；再大的卡也不必更大。"""
    model, config = default
    gpu = Runtime(torch.device("cuda"), torch.bfloat16, Processes())
    free = int((gigabytes - 0.5) * 2**30) - 4 * sum(model.parameter_counts())
    found = first_micro_batch(model, config, gpu, 64, free)
    assert found == expected
    assert found == 1 or step_bytes(model, config, found, mixed=True) < (gigabytes - 0.5) * 2**30
    assert first_micro_batch(model, config, gpu, 64, None) == 32
    assert first_micro_batch(model, config, gpu, 3, free) <= 3


def test_the_cpu_takes_the_whole_batch(default):
    cpu = Runtime(torch.device("cpu"), torch.bfloat16, Processes())
    assert first_micro_batch(*default, cpu, 64, None) == 64


def test_fixed_part_counts_every_copy(default):
    """权重、梯度、优化器的状态、平均的权重：各是几份 fp32。"""
    model, config = default
    total = sum(model.parameter_counts())
    assert fixed_bytes(model, "adamw", averaged=False) == 4 * 4 * total
    assert fixed_bytes(model, "adamw", averaged=True) == 5 * 4 * total
    assert fixed_bytes(model, "muon", averaged=False) < 4 * 4 * total
    whole = step_bytes(model, config, 8, mixed=True)
    assert whole < step_bytes(model, dataclasses.replace(config, optimizer="adamw"), 8, mixed=True)
    assert whole < step_bytes(model, config, 8, mixed=False)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
    ],
)
def test_every_face_of_too_little_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("out of memory")])
def test_other_errors_are_not_it(error):
    assert not is_out_of_memory(error)
