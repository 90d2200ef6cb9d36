"""GPT：只有解码器，RoPE，pre-LayerNorm，精确的 GELU，词嵌入与输出层共用权重。

结构与 GPT-NeoX（Black 等 2022）的顺序残差形式相同，rotary_pct = 1；注意力用
`F.scaled_dot_product_attention`，硬件支持时就是 Flash Attention。
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MOST_LOGITS = 2**26  # 算损失时一次至多展开这么多个 logits（fp32 时 268 MB）


@dataclass(frozen=True)
class ModelConfig:
    """重建模型所需的全部。

    Attributes:
        vocab_size: 词表大小 V。
        max_seq_len: 训练时的上下文长度 T（词元）。
        n_layers, n_heads, n_embed: 层数 L、头数 H、隐藏维度 C。
        dropout: 训练时的丢弃率。
        rope_base: RoPE 的频率底数。
        layer_norm_eps: LayerNorm 的 ε。

    Raises:
        ValueError: 有一个大小不是正整数、rope_base 或 layer_norm_eps 不是正数，
            n_embed 不能被 n_heads 整除，或每个头的维度是奇数。
    """

    vocab_size: int
    max_seq_len: int
    n_layers: int
    n_heads: int
    n_embed: int
    dropout: float = 0.0
    rope_base: float = 10000.0
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.max_seq_len, self.n_layers, self.n_heads, self.n_embed)
        if not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError("词表、长度、层数、头数、维度都必须是正整数")
        if not all(0 < number < math.inf for number in (self.rope_base, self.layer_norm_eps)):
            raise ValueError("rope_base 与 layer_norm_eps 必须是正数")
        if self.n_embed % self.n_heads or self.n_embed // self.n_heads % 2:
            raise ValueError("n_embed / n_heads 必须是偶数的整数")

    @property
    def head_dim(self) -> int:
        return self.n_embed // self.n_heads

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class KVCache:
    """每层的键与值，预先分配；写歌时不必重算前文。

    Args:
        capacity: 最多容纳的词元数。
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layers, 2, batch_size, config.n_heads, capacity, config.head_dim)
        self.entries = torch.empty(shape, device=device, dtype=dtype)
        self.rope = rope_cos_sin(0, capacity, config.head_dim, config.rope_base, device)  # 一首歌只算一次
        self.capacity = capacity
        self.length = 0  # 已有的词元数

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """写入一层的新键值 (B, H, T, D)，返回这一层到目前为止的全部 (B, H, length+T, D)。"""
        end = self.length + k.size(2)
        keys, values = self.entries[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, count: int) -> None:
        """一次前向结束后，把新写入的 count 个词元计入。"""
        self.length += count

    def keep_rows(self, rows: Tensor) -> None:
        """只留下批次中的这些行，写完的歌就此离开。"""
        self.entries = self.entries[:, :, rows]


def rope_cos_sin(start: int, length: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """位置 start … start+length-1 的旋转角的余弦与正弦，各 (length, head_dim) float32。

    每次前向现算一遍（量级可忽略）：不占检查点，不受半精度转换影响，也没有长度上限。
    Su 等 2021，RoFormer；两半配对的排列同 GPT-NeoX。
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)  # (length, head_dim/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """旋转查询或键。x: (B, H, T, D)；cos、sin: (T, D) float32。返回与 x 同形状、同类型。"""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return (x.float() * cos + rotated * sin).to(x.dtype)


class Attention(nn.Module):
    """因果多头自注意力。"""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = nn.Linear(config.n_embed, 3 * config.n_embed)
        self.proj = nn.Linear(config.n_embed, config.n_embed)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        heads = (B, T, self.config.n_heads, self.config.head_dim)
        if cache is not None:  # 逐个词元写时，每个小运算都有固定的开销：查询与键一起旋转
            qkv = self.qkv(x).to(cache.entries.dtype).view(B, T, -1, self.config.head_dim).transpose(1, 2)
            qk, v = qkv.split((2 * self.config.n_heads, self.config.n_heads), dim=1)
            q, k = apply_rope(qk, cos, sin).chunk(2, dim=1)
        else:
            q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))  # (B, H, T, D)
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        mask = None
        past = cache.length if cache is not None else 0
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        if past and T > 1:  # 接在前文之后的一段：能看见全部前文和自己之前的位置
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        dropout = self.config.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=past == 0 and T > 1)
        y = y.transpose(1, 2).reshape(B, T, C)
        if cache is not None:
            y = y.to(x.dtype)
        return self.dropout(self.proj(y))


class FeedForward(nn.Module):
    """两层前馈网络，中间四倍宽。"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embed, 4 * config.n_embed)
        self.proj = nn.Linear(4 * config.n_embed, config.n_embed)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.proj(F.gelu(self.fc(x))))


class Block(nn.Module):
    """pre-LayerNorm 的一层：注意力与前馈各带残差。"""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embed, eps=config.layer_norm_eps)
        self.attention = Attention(config, layer)
        self.norm_2 = nn.LayerNorm(config.n_embed, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.norm_1(x), cos, sin, cache)
        return x + self.feed_forward(self.norm_2(x))


class GPT(nn.Module):
    """词元 → 下一个词元的 logits。"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embed)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.n_embed, eps=config.layer_norm_eps)
        self.head: PackedLinear | None = None  # 只在写歌时有：排布过的输出层
        self._initialise()

    def _initialise(self) -> None:
        """GPT-2 的初始化：N(0, 0.02)，汇入残差的投影再除以 sqrt(2L)（Radford 等 2019，2.3 节）。"""
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layers))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """最后一层的隐藏状态。tokens: (B, T) int64 → (B, T, C)。

        给出 cache 时，tokens 接在 cache 已有的词元之后，并写入 cache。

        Raises:
            ValueError: cache 装不下。
        """
        T = tokens.size(1)
        start = cache.length if cache is not None else 0
        if cache is not None and start + T > cache.capacity:
            raise ValueError(f"KV 缓存容量 {cache.capacity}，装不下 {start + T} 个词元")
        if cache is not None:
            cos, sin = (table[start : start + T] for table in cache.rope)
        else:
            cos, sin = rope_cos_sin(0, T, self.config.head_dim, self.config.rope_base, tokens.device)
        x = self.dropout(self.embedding(tokens))  # (B, T, C)
        for block in self.blocks:
            x = block(x, cos, sin, cache)
        if cache is not None:
            cache.advance(T)
        return self.norm(x)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """与模型同设备的空缓存。CPU 上总是 float32：那里半精度的一行注意力反而慢三四倍。"""
        weight = self.embedding.weight
        dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        return KVCache(self.config, batch_size, capacity, weight.device, dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """隐藏状态 (…, C) → logits (…, V)。"""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens: (B, T) int64 → logits (B, T, V)。"""
        return self.logits(self.hidden(tokens, cache))

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """全部目标的交叉熵之和（nat）；目标为 -1 的位置不计。tokens、targets: (B, T) int64。

        求和而不是平均：各微批次直接相加就是整批。
        """
        hidden, targets = self.hidden(tokens).flatten(0, 1), targets.flatten()  # (B·T, C)、(B·T,)
        rows = max(1, MOST_LOGITS // self.config.vocab_size)
        if len(targets) <= rows:
            return self._sum_of_losses(hidden, targets)
        # 65,536 个词元 × 10,000 的 fp32 logits 有 2.6 GB，梯度再来一份：分块算，反传时每块重算一遍。
        total = hidden.new_zeros((), dtype=torch.float32)
        for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            total = total + checkpoint(self._sum_of_losses, part, wanted, use_reentrant=False, preserve_rng_state=False)
        return total

    def _sum_of_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(hidden).float(), targets, ignore_index=-1, reduction="sum")

    def parameter_counts(self) -> tuple[int, int]:
        """(词嵌入以外的参数量, 词嵌入的参数量)。"""
        total = sum(parameter.numel() for parameter in self.parameters())
        embedding = self.embedding.weight.numel()
        return total - embedding, embedding

    def flops_per_token(self) -> float:
        """训练一个词元的浮点运算数：6N + 12·L·C·T（Chowdhery 等 2022，PaLM 附录 B）。

        N 含词嵌入，因为它同时是输出层的矩阵。
        """
        c = self.config
        return 6 * sum(self.parameter_counts()) + 12 * c.n_layers * c.n_embed * c.max_seq_len


# ---------------------------------------------------------------------------
# 写歌：逐个词元解码时，时间几乎全花在把权重从内存读一遍上
# ---------------------------------------------------------------------------

WRITING_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.bfloat16,  # 权重 int8，其余 bf16
}


class PackedLinear(nn.Module):
    """只用于写歌的线性层：CPU 上权重按 oneDNN 的计算核重新排布，或量化为 int8，一行输入时少等内存。

    全项目只有这里用 torch 的内部算子：每个都先试算，报错或与 `F.linear` 不符就不用它。

    Args:
        weight: (输出, 输入)，任意浮点类型；不改动它。
        bias: (输出,) 或 None。
        dtype: `WRITING_DTYPES` 的一个名称。int8 逐输出通道对称量化：q = round(w / s)，s = max|w| / 127。
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: str) -> None:
        super().__init__()
        kind = WRITING_DTYPES[dtype]
        self.weight: Tensor | None = weight.detach().to(kind)  # 排布成功后不再需要
        self.bias = None if bias is None else bias.detach().to(kind)
        self.int8: tuple[Tensor, Tensor] | None = None  # (q, s)
        self.packed: Tensor | None = None
        if dtype == "int8":
            scale = (weight.detach().float().abs().amax(dim=1) / 127).clamp_min(1e-12).to(kind)
            quantised = (weight.detach() / scale[:, None].float()).round().clamp(-127, 127).to(torch.int8)
            self.weight = (quantised * scale[:, None].float()).to(kind)
            if self._works(self._multiply_int8, (quantised, scale)):
                self.int8 = quantised, scale
        if weight.device.type != "cpu":
            return
        with contextlib.suppress(AttributeError, RuntimeError):
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 1)
            if self._works(self._multiply_packed, packed):
                self.packed, self.weight = packed, None

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, 输入) → (…, 输出)。"""
        if self.int8 is not None and x.numel() == x.size(-1):  # 只有一行时 int8 才快
            return self._multiply_int8(x, self.int8)
        if self.packed is not None:
            return self._multiply_packed(x, self.packed)
        return F.linear(x, self.weight, self.bias)

    def _works(self, multiply: Callable[[Tensor, Any], Tensor], weight: Any) -> bool:
        """试算一行，与 F.linear 比较。"""
        row = torch.linspace(-1, 1, self.weight.size(1)).to(self.weight.dtype)[None]
        try:
            found = multiply(row, weight)
        except (AttributeError, NotImplementedError, RuntimeError):
            return False
        expected = F.linear(row.float(), self.weight.float(), None if self.bias is None else self.bias.float())
        error = (found.float() - expected).norm()
        return bool(error <= 0.02 * expected.norm() + 1e-6)

    def _multiply_int8(self, x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        y = torch.ops.aten._weight_int8pack_mm.default(x.view(1, -1), *weight)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)

    def _multiply_packed(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, self.bias, "none", [], "")


@torch.no_grad()
def prepare_for_writing(model: GPT, dtype: str) -> GPT:
    """就地把模型改成只用于写歌的：线性层与输出层换成 `PackedLinear`，其余转成半精度或 float32。

    改过的模型不能再训练或保存；先 `.to(device)` 再调用。

    Args:
        dtype: `WRITING_DTYPES` 的一个名称。

    Raises:
        ValueError: 模型不在 CPU 上而 dtype 是 int8。
    """
    if dtype == "int8" and model.embedding.weight.device.type != "cpu":
        raise ValueError("int8 只能在 CPU 上用")
    model.head = PackedLinear(model.embedding.weight, None, dtype)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias, dtype))
            elif isinstance(child, nn.Dropout):  # 什么也不做，却每次要几微秒
                setattr(module, name, nn.Identity())
    return model.to(WRITING_DTYPES[dtype]).eval().requires_grad_(False)
