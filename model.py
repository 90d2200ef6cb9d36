"""GPT：只有解码器，RoPE，pre-LayerNorm，精确的 GELU，词嵌入与输出层共用权重。

结构与 GPT-NeoX（Black 等 2022）的顺序残差形式相同，rotary_pct = 1；注意力用
`F.scaled_dot_product_attention`，硬件支持时就是 Flash Attention。
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class KVCache:
    """每层的键与值，预先分配 capacity 个词元的；写歌时不必重算前文。"""

    def __init__(
        self, config: ModelConfig, batch_size: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config = config
        shape = (config.n_layers, 2, batch_size, config.n_heads, capacity, config.head_dim)
        self.hold(torch.empty(shape, device=device, dtype=dtype))
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
        self.hold(self.entries[:, :, rows])

    def copy(self, rows: int, capacity: int) -> "KVCache":
        """只有一行的缓存复制成 rows 行；capacity 不少于 length。"""
        made = KVCache(self.config, rows, capacity, self.entries.device, self.entries.dtype)
        made.entries[:, :, :, :, : self.length] = self.entries[:, :, :, :, : self.length]
        made.length = self.length
        return made

    def hold(self, entries: Tensor) -> None:
        """键值放在这里：(L, 2, B, H, 不少于 capacity, D)。"""
        self.entries = entries
        self.layers = [layer.unbind() for layer in entries]


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
    """旋转查询与键。x: (B, T, …, D)；cos、sin: (T, …, D) float32。返回与 x 同形状、同类型。"""
    swapped = x.float().roll(x.size(-1) // 2, dims=-1)  # (后一半, 前一半)
    return torch.addcmul(x.float() * cos, swapped, sin).to(x.dtype)


class View(NamedTuple):
    """一次前向里各层看到的。"""

    cos: Tensor  # (T, 1, 1, D) float32，这些位置的旋转角
    sin: Tensor
    cache: KVCache | None = None  # 前文
    mask: Tensor | None = None  # (T, 前文 + T)，各行不同时 (B, 1, T, T)；None：全看得见，或没有前文、按因果遮


class Attention(nn.Module):
    """因果多头自注意力。"""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = nn.Linear(config.n_embed, 3 * config.n_embed)
        self.proj = nn.Linear(config.n_embed, config.n_embed)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, view: View) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.config.n_heads, self.config.head_dim)
        if view.cache is not None:
            qkv = qkv.to(view.cache.entries.dtype)
        q, k = apply_rope(qkv[:, :, :2], view.cos, view.sin).transpose(1, 3).unbind(2)  # (B, H, T, D)
        v = qkv[:, :, 2].transpose(1, 2)
        if view.cache is not None:
            k, v = view.cache.update(self.layer, k, v)
        dropout, causal = self.config.dropout if self.training else 0.0, view.mask is None and T > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=view.mask, dropout_p=dropout, is_causal=causal)
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

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embed, eps=config.layer_norm_eps)
        self.attention = Attention(config, layer)
        self.norm_2 = nn.LayerNorm(config.n_embed, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, view: View) -> Tensor:
        x = x + self.attention(self.norm_1(x), view)
        return x + self.feed_forward(self.norm_2(x))


class GPT(nn.Module):
    """词元 → 下一个词元的 logits。"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # from_pretrained：不在这里填随机数，由 _initialise 一起填
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.n_embed), freeze=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks: Sequence[Block] = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))  # type: ignore[assignment]
        self.norm = nn.LayerNorm(config.n_embed, eps=config.layer_norm_eps)
        self.head: Callable[[Tensor], Tensor] | None = None  # 写歌时可换成更快的输出层
        # 不是缓冲区：不占检查点，也不随模型转成半精度。放在编译之外，否则每一层都重算一遍正弦。
        self.rope = rope_cos_sin(0, config.max_seq_len, config.head_dim, config.rope_base, torch.device("cpu"))
        self.activation_checkpointing = False  # 训练时不留各层的中间结果，反传时重算
        self.song_start: int | None = None  # `<s>`：没有缓存时，看不见它之前的别的歌；None 就看得见
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
        self.rope = self.rope[0].to(self.embedding.weight.device), self.rope[1].to(self.embedding.weight.device)
        return self

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """最后一层的隐藏状态。tokens: (B, T) int64 → (B, T, C)。

        给出 cache 时，tokens 接在 cache 已有的词元之后，并写入 cache。

        Raises:
            ValueError: cache 装不下。
        """
        view = self._view(tokens, cache)
        x = self.dropout(self.embedding(tokens))  # (B, T, C)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, view, use_reentrant=False)
            else:
                x = block(x, view)
        if cache is not None:
            cache.advance(tokens.size(1))
        return self.norm(x)

    def _view(self, tokens: Tensor, cache: KVCache | None) -> View:
        T, c = tokens.size(1), self.config
        if cache is None:
            if len(self.rope[0]) < T:  # 比训练时还长的一段
                self.rope = rope_cos_sin(0, T, c.head_dim, c.rope_base, tokens.device)
            cos, sin = (table[:T, None, None] for table in self.rope)
            return View(cos, sin, mask=self._song_mask(tokens))
        if cache.length + T > cache.capacity:
            raise ValueError(f"KV 缓存容量 {cache.capacity}，装不下 {cache.length + T} 个词元")
        cos, sin = (table[:, None, None] for table in cache.angles(T))
        return View(cos, sin, cache, cache.mask(T))

    def _song_mask(self, tokens: Tensor) -> Tensor | None:
        """(B, 1, T, T) bool：只看得见同一首歌里自己与之前的；不分歌时 None。"""
        if self.song_start is None:
            return None
        songs = (tokens == self.song_start).cumsum(1)
        return (songs[:, None, :, None] == songs[:, None, None, :]).tril()

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
        """全部目标的交叉熵之和（nat），各微批次相加就是整批；目标为 -1 的不计。tokens、targets: (B, T) int64。"""
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
        """训练一个词元的浮点运算数：6N + 12·L·C·T（Chowdhery 等 2022，附录 B）；N 含与输出层共用的词嵌入。"""
        c = self.config
        return 6 * sum(self.parameter_counts()) + 12 * c.n_layers * c.n_embed * c.max_seq_len
