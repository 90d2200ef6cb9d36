"""GPT：只有解码器，RoPE，pre-LayerNorm，精确的 GELU，词嵌入与输出层共用权重。

结构与 GPT-NeoX（Black 等 2022）的顺序残差形式相同，rotary_pct = 1；注意力用
`F.scaled_dot_product_attention`，硬件支持时就是 Flash Attention。
"""

import math
import warnings
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
        self.config = config
        shape = (config.n_layers, 2, batch_size, config.n_heads, capacity, config.head_dim)
        self._hold(torch.empty(shape, device=device, dtype=dtype))
        self.rope = rope_cos_sin(0, capacity, config.head_dim, config.rope_base, device)  # 一首歌只算一次
        self.capacity = capacity
        self.length = 0  # 已有的词元数

    def angles(self, count: int) -> tuple[Tensor, Tensor]:
        """接下来 count 个位置的旋转角：余弦与正弦，各 (count, D)。"""
        cos, sin = self.rope
        return cos[self.length : self.length + count], sin[self.length : self.length + count]

    def mask(self, count: int) -> Tensor | None:
        """接下来 count 个位置的注意力遮罩；None 表示不必另给：全看得见，或缓存还空着、按因果遮。"""
        if not self.length or count == 1:
            return None  # 否则能看见全部前文和自己之前的位置
        return torch.ones(count, self.length + count, dtype=torch.bool, device=self.entries.device).tril(self.length)

    def advance(self, count: int) -> None:
        """各层都写入了 count 个位置。"""
        self.length += count

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """写入一层的新键值 (B, H, T, D)，返回这一层到目前为止的全部 (B, H, length+T, D)。"""
        keys, values = self.layers[layer]
        count = k.size(2)
        keys.narrow(2, self.length, count).copy_(k)  # narrow 比切片少几微秒，每个词元要走几十遍
        values.narrow(2, self.length, count).copy_(v)
        return keys.narrow(2, 0, self.length + count), values.narrow(2, 0, self.length + count)

    def keep_rows(self, rows: Tensor) -> None:
        """只留下批次中的这些行，写完的歌就此离开。"""
        self._hold(self.entries[:, :, rows])

    def copy(self, rows: int, capacity: int) -> "KVCache":
        """只有一行的缓存复制成 rows 行；capacity 不少于 length。"""
        made = KVCache(self.config, rows, capacity, self.entries.device, self.entries.dtype)
        made.entries[:, :, :, :, : self.length] = self.entries[:, :, :, :, : self.length]
        made.length = self.length
        return made

    def _hold(self, entries: Tensor) -> None:
        self.entries = entries  # (L, 2, B, H, capacity, D)
        self.layers = [layer.unbind() for layer in entries]


class StaticCache(KVCache):
    """另一个 KV 缓存的固定形状：位置是设备上的张量，每次接一个词元，看遍整个容量而遮住后面。

    每步的形状与地址都不变，所以可以录成 CUDA 图。写入哪里由 `position` 定，不由 `length`。
    """

    def __init__(self, cache: KVCache) -> None:
        self.__dict__.update(cache.__dict__)  # 同一块内存
        self.entries[:, :, :, :, self.length :] = 0  # 遮住的也要乘以零，不能是 nan
        self.places = torch.arange(self.capacity, device=self.entries.device)
        self.position = self.places[self.length : self.length + 1].clone()  # (1,)

    def angles(self, count: int) -> tuple[Tensor, Tensor]:
        cos, sin = self.rope
        return cos.index_select(0, self.position), sin.index_select(0, self.position)

    def mask(self, count: int) -> Tensor:
        hidden = (self.places > self.position).view(1, 1, 1, -1)
        return torch.zeros(hidden.shape, dtype=self.entries.dtype, device=hidden.device).masked_fill(hidden, -math.inf)

    def advance(self, count: int) -> None:
        pass

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.layers[layer]
        return keys.index_copy_(2, self.position, k), values.index_copy_(2, self.position, v)


def rope_cos_sin(start: int, length: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """位置 start … start+length-1 的旋转角的余弦与正弦，各 (length, head_dim) float32；前一半的正弦已取负。

    Su 等 2021，RoFormer；两半配对的排列同 GPT-NeoX。
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)  # (length, head_dim/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """旋转查询或键。x: (B, H, T, D)；cos、sin: (T, D) float32。返回与 x 同形状、同类型。"""
    swapped = x.float().roll(x.size(-1) // 2, dims=-1)  # (后一半, 前一半)
    return torch.addcmul(x.float() * cos, swapped, sin).to(x.dtype)


def _normalise(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class Attention(nn.Module):
    """因果多头自注意力。"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.n_embed, 3 * config.n_embed)
        self.proj = nn.Linear(config.n_embed, config.n_embed)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        heads = (B, T, self.config.n_heads, self.config.head_dim)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))  # (B, H, T, D)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        dropout = self.config.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.dropout(self.proj(y.transpose(1, 2).reshape(B, T, C)))


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

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embed, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(config.n_embed, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x), cos, sin)
        return x + self.feed_forward(self.norm_2(x))


class GPT(nn.Module):
    """词元 → 下一个词元的 logits。"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # from_pretrained：不必先随机填一遍。在 meta 设备上抽正态随机数要载入八百个模块，一秒
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.n_embed), freeze=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.n_embed, eps=config.layer_norm_eps)
        self.head: WritingLinear | None = None  # 只在写歌时有：排布过的输出层
        # 不是缓冲区：不占检查点，也不随模型转成半精度。放在编译之外，否则每一层都重算一遍正弦。
        self.rope = rope_cos_sin(0, config.max_seq_len, config.head_dim, config.rope_base, torch.device("cpu"))
        self.activation_checkpointing = False  # 训练时不留各层的中间结果，反传时重算
        if not self.embedding.weight.is_meta:
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

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any) -> "GPT":
        super()._apply(fn, *args)
        self.rope = tuple(table.to(self.embedding.weight.device) for table in self.rope)
        return self

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """最后一层的隐藏状态。tokens: (B, T) int64 → (B, T, C)。

        给出 cache 时，tokens 接在 cache 已有的词元之后，并写入 cache。

        Raises:
            ValueError: cache 装不下。
        """
        if cache is not None:
            return self._hidden_after(tokens, cache)
        T, c = tokens.size(1), self.config
        if len(self.rope[0]) < T:  # 比训练时还长的一段
            self.rope = rope_cos_sin(0, T, c.head_dim, c.rope_base, tokens.device)
        cos, sin = (table[:T] for table in self.rope)
        x = self.dropout(self.embedding(tokens))  # (B, T, C)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, cos, sin, use_reentrant=False)
            else:
                x = block(x, cos, sin)
        return self.norm(x)

    def _hidden_after(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """接在 cache 之后的隐藏状态，不丢弃。与各模块的 forward 是同一个网络，平铺开写：

        一个词元只有几毫秒，模块的层层调用要占其中一成多。
        """
        (B, T), past = tokens.shape, cache.length
        if past + T > cache.capacity:
            raise ValueError(f"KV 缓存容量 {cache.capacity}，装不下 {past + T} 个词元")
        cos, sin = (table[:, None, None] for table in cache.angles(T))  # (T, 1, 1, D)
        mask = cache.mask(T)
        heads = (B, T, 3, self.config.n_heads, self.config.head_dim)
        x = self.embedding(tokens)  # (B, T, C)
        for layer, block in enumerate(self.blocks):
            attention, feed_forward = block.attention, block.feed_forward
            qkv = attention.qkv(_normalise(x, block.norm_1)).to(cache.entries.dtype).view(heads)
            q, k = apply_rope(qkv[:, :, :2], cos, sin).transpose(1, 3).unbind(2)  # (B, H, T, D)
            k, v = cache.update(layer, k, qkv[:, :, 2].transpose(1, 2))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=past == 0 and T > 1)
            x = x + attention.proj(y.transpose(1, 2).reshape(x.shape))
            x = x + feed_forward.proj(F.gelu(feed_forward.fc(_normalise(x, block.norm_2))))
        cache.advance(T)
        return _normalise(x, self.norm)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """与模型同设备、同精度的空缓存。"""
        weight = self.embedding.weight
        return KVCache(self.config, batch_size, capacity, weight.device, weight.dtype)

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
# 与 transformers 的 GPT-NeoX 等价：顺序残差、全维 RoPE、精确的 GELU、共用输出层
# ---------------------------------------------------------------------------


def neox_config(config: ModelConfig) -> dict[str, Any]:
    """同样结构的 `transformers.GPTNeoXConfig` 的参数。"""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embed,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": 4 * config.n_embed,
        "hidden_act": "gelu",
        "rotary_pct": 1.0,
        "rotary_emb_base": config.rope_base,
        "max_position_embeddings": config.max_seq_len,
        "layer_norm_eps": config.layer_norm_eps,
        "tie_word_embeddings": True,
        "use_parallel_residual": False,
        "attention_bias": True,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def neox_state(model: GPT) -> dict[str, Tensor]:
    """GPT-NeoX 的权重名与排列：那里每个头各含 [q|k|v]，我们是 [q|k|v] 各含全部的头。"""
    c = model.config

    def by_head(qkv: Tensor) -> Tensor:
        parts = qkv.view(3, c.n_heads, c.head_dim, *qkv.shape[1:])
        return parts.transpose(0, 1).reshape(qkv.shape)

    state = {"gpt_neox.embed_in.weight": model.embedding.weight, "embed_out.weight": model.embedding.weight}
    for kind in ("weight", "bias"):
        state[f"gpt_neox.final_layer_norm.{kind}"] = getattr(model.norm, kind)
        for number, block in enumerate(model.blocks):
            layer = {
                "input_layernorm": getattr(block.norm_1, kind),
                "post_attention_layernorm": getattr(block.norm_2, kind),
                "attention.query_key_value": by_head(getattr(block.attention.qkv, kind)),
                "attention.dense": getattr(block.attention.proj, kind),
                "mlp.dense_h_to_4h": getattr(block.feed_forward.fc, kind),
                "mlp.dense_4h_to_h": getattr(block.feed_forward.proj, kind),
            }
            state.update({f"gpt_neox.layers.{number}.{name}.{kind}": value for name, value in layer.items()})
    return {name: value.detach().clone() for name, value in state.items()}


# ---------------------------------------------------------------------------
# 写歌：逐个词元解码时，时间几乎全花在把权重从内存读一遍上
# ---------------------------------------------------------------------------

WRITING_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
Multiply = Callable[[Tensor], Tensor]  # (…, 输入) → (…, 输出)


class WritingLinear:
    """只用于写歌的线性层，在 CPU 上：权重换一种排布或精度，一行输入时少等内存。

    - 多行：算力要紧，用 oneDNN 的矩阵乘，权重预先排布；fp16 时用 float32 算，许多 CPU 没有 fp16 的矩阵乘。
    - 一行，fp32：`F.linear` 只用一个线程读权重；按输出分成几块成批地乘，每个线程读一块。
    - 一行，bf16、fp16：权重放进 fp16（bf16 的权重 fp16 也装得下，误差不过 2⁻²⁵），它的一行的核比 bf16 的快一倍。
    - int8：权重逐输出通道、激活逐行量化（同 torchao 的 int8_dynamic_activation_int8_weight），用 FBGEMM 相乘；
      一行时由它自己量化，快三成，激活的量化不对称。

    全项目只有这里的几个核用 torch 的内部算子；每个都先试算，报错或与 `F.linear` 不符就不用它。

    Args:
        weight: (输出, 输入)，float32；不改动它。
        bias: (输出,) 或 None。
        dtype: `WRITING_DTYPES` 的一个名称。
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: str) -> None:
        weight = weight.detach()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        kind = torch.bfloat16 if dtype == "bf16" else torch.float32  # 多行时用它算
        if dtype == "int8":
            scale = (weight.abs().amax(dim=1) / 127).clamp_min(1e-12)  # (输出,)
            quantised = (weight / scale[:, None]).round().to(torch.int8)
            weight = quantised * scale[:, None]
            packed = _fbgemm_packed(quantised, scale)
            one, many = (_int8_one_row, packed), (_int8_rows, packed)
        else:
            weight = weight.to(WRITING_DTYPES[dtype]).float()
            one = _blocks if dtype == "fp32" else _fp16, weight
            many = _onednn_packed, weight.to(kind)
        self.many = _working(many, weight, bias)
        self.special = self.many is not None  # 这个 torch 有更快的核
        if self.many is None:
            self.many = _plain(weight.to(kind), bias)
        self.one = _working(one, weight, bias) or self.many

    def __call__(self, x: Tensor) -> Tensor:
        """x: (…, 输入) → (…, 输出)，类型是所用的核的。"""
        return (self.one if x.numel() == x.size(-1) else self.many)(x)


def _working(kernel: tuple, weight: Tensor, bias: Tensor) -> Multiply | None:
    """备好一个核，试算两行，与 F.linear 比较；用不了就是 None。"""
    make, *prepared = kernel
    rows = torch.linspace(-1, 1, 2 * weight.size(1)).view(2, -1)
    try:
        multiply = make(*prepared, bias)
        found = torch.cat([multiply(row) for row in rows.split(1)])
    except (AttributeError, NotImplementedError, RuntimeError):
        return None
    expected = F.linear(rows, weight, bias)
    return multiply if (found - expected).norm() <= 0.02 * expected.norm() + 1e-6 else None


def _plain(weight: Tensor, bias: Tensor) -> Multiply:
    bias = bias.to(weight.dtype)
    return lambda x: F.linear(x.to(weight.dtype), weight, bias)


def _fp16(weight: Tensor, bias: Tensor) -> Multiply:
    weight, bias = weight.half(), bias.half()
    return lambda x: torch.addmv(bias, weight, x.reshape(-1).half()).view(*x.shape[:-1], -1)


def _blocks(weight: Tensor, bias: Tensor) -> Multiply:
    threads, (outputs, inputs) = torch.get_num_threads(), weight.shape
    blocks = next((n for n in range(threads, 8 * threads) if outputs % n == 0), None)
    if blocks is None or not torch.backends.mkl.is_available():
        raise NotImplementedError
    weight = weight.view(blocks, -1, inputs)

    def multiply(x: Tensor) -> Tensor:  # 写成 baddbmm，或 x 的步长不同，都慢四倍：走的不是 MKL 的同一个核
        products = torch.bmm(weight, x.reshape(1, 1, inputs).expand(blocks, 1, -1).transpose(1, 2))
        return (products.view(outputs) + bias).view(*x.shape[:-1], outputs)

    return multiply


def _onednn_packed(weight: Tensor, bias: Tensor) -> Multiply:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)  # 按 32 行排布的核，多几行少几行也快
    bias = bias.to(weight.dtype)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x.to(bias.dtype), packed, bias, "none", [], "")


def _fbgemm_packed(quantised: Tensor, scale: Tensor) -> Any:
    """FBGEMM 排布过的 int8 权重；这个 torch 或 CPU 没有时为 None。"""
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 量化张量将移出 torch；没有的那天返回 None
            weight = torch._make_per_channel_quantized_tensor(quantised, scale.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None


def _eight_bits() -> bool:
    """激活能不能用满 8 位；没有 VNNI 的 CPU 上两个乘积之和会饱和，只能用 7 位。"""
    return getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def _int8_one_row(packed: Any, bias: Tensor) -> Multiply:
    multiply, seven_bits = torch.ops.quantized.linear_dynamic.default, not _eight_bits()
    return lambda x: multiply(x, packed, seven_bits).add_(bias)


def _int8_rows(packed: Any, bias: Tensor) -> Multiply:
    levels = 127 if _eight_bits() else 63
    linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def multiply(x: Tensor) -> Tensor:  # 每行先缩放到 [-1, 1]，量化的刻度就是定数，一行的结果不随别的行而变
        rows = x.reshape(-1, x.size(-1))
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12)
        products = linear(rows / largest, 1 / levels, levels + 1, packed)
        return products.mul_(largest).add_(bias).view(*x.shape[:-1], -1)

    return multiply


@torch.no_grad()
def prepare_for_writing(model: GPT, dtype: str) -> GPT:
    """就地把模型改成只用于写歌的；改过的模型不能再训练或保存。先 `.to(device)` 再调用。

    CPU 上只换线性层与输出层（`WritingLinear`），其余保持 float32：一行激活不费内存，半精度的注意力慢三四倍。
    别的设备上整个模型转成那种精度。

    Args:
        dtype: `WRITING_DTYPES` 的一个名称。

    Raises:
        ValueError: 模型不在 CPU 上而 dtype 是 int8。
    """
    on_cpu = model.embedding.weight.device.type == "cpu"
    if dtype == "int8" and not on_cpu:
        raise ValueError("int8 只能在 CPU 上用")
    if not on_cpu:
        return model.to(WRITING_DTYPES[dtype]).eval().requires_grad_(False)
    model.head = WritingLinear(model.embedding.weight.float(), None, dtype)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                delattr(module, name)  # WritingLinear 不是模块：少一层调用，也没有参数
                setattr(module, name, WritingLinear(child.weight.float(), child.bias.float(), dtype))
    return model.float().eval().requires_grad_(False)
