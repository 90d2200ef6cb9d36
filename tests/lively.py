"""权重都取明显的随机值的小模型。"""

import torch

from model import GPT, KVCache, ModelConfig

CPU = torch.device("cpu")
TINY = ModelConfig(vocab_size=50, max_seq_len=32, n_layers=2, n_heads=4, n_embed=32)


def lively(model_config: ModelConfig = TINY, seed: int = 0) -> GPT:
    """权重、偏置、LayerNorm 都取明显的随机值的模型：任何一项接错都会显出来。"""
    torch.manual_seed(seed)
    model = GPT(model_config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model.requires_grad_(False)


def some_tokens(length: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randint(TINY.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def new_cache(batch: int, capacity: int, model_config: ModelConfig = TINY) -> KVCache:
    return KVCache(model_config, batch, capacity, CPU, torch.float32)
