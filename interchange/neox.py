"""与 transformers 的 GPT-NeoX 的对应：顺序残差、全维 RoPE、精确的 GELU、共用输出层。"""

from typing import Any

from torch import Tensor

from model import GPT, ModelConfig


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
