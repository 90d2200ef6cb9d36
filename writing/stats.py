"""写一次的用时。"""

import json
import time


class Stats:
    """写一次的用时；`line` 给出一行 JSON。

    Args:
        load_s: 载入检查点、备好模型的秒数。
    """

    def __init__(self, dtype: str, load_s: float) -> None:
        self.dtype, self.load_s = dtype, load_s

    def start(self) -> None:
        self.began, self.tokens, self.first_tokens = time.perf_counter(), 0, 0
        self.first: float | None = None

    def count(self, tokens: int) -> None:
        """一步写出了 tokens 个词元。"""
        self.last = time.perf_counter()
        if self.first is None:
            self.first, self.first_tokens = self.last, tokens
        self.tokens += tokens

    def line(self, memory_gb: float | None) -> str:
        """memory_gb 是内存的峰值。tokens_per_s 只算第一步之后的解码；一步也没写成时，没有的项是 null。"""
        decoding = self.last - self.first if self.first is not None and self.tokens > self.first_tokens else None
        values = {
            "tokens": self.tokens,
            "seconds": time.perf_counter() - self.began,
            "tokens_per_s": (self.tokens - self.first_tokens) / decoding if decoding else None,
            "first_token_s": self.first - self.began if self.first is not None else None,
            "load_s": self.load_s,
            "peak_memory_mb": memory_gb * 1024 if memory_gb is not None else None,
            "dtype": self.dtype,
        }
        return json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})
