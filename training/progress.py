"""训练的进度。"""

import secrets
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Progress:
    """训练的进度：除模型、优化器之外，接着训练所需的一切。

    Attributes:
        iteration: 已完成的优化步数。
        evaluation_due: 这一步之后该评估，还没有评估完。
        skipped_steps: 损失或梯度不是有限的数而跳过的步数。
        stale_evaluations: 最近连续几次评估没有更好。
        extended_from: 在走完的一次训练上接着训时，从哪一步接起；0 是没有。
    """

    seed: int
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    iteration: int = 0
    evaluation_due: bool = False
    skipped_steps: int = 0
    val_loss: float | None = None
    val_bpc: float | None = None
    best_val_loss: float | None = None
    best_val_bpc: float | None = None
    stale_evaluations: int = 0
    extended_from: int = 0

    @classmethod
    def stored_in(cls, previous: dict[str, Any]) -> "Progress":
        names = [each.name for each in fields(cls) if each.name not in ("seed", "iteration")]
        same = {name: previous[name] for name in names if name in previous}  # 早先的检查点没有末两项
        return cls(seed=previous["rng"]["seed"], iteration=previous["iter"], **same)

    def as_contents(self) -> dict[str, Any]:
        """latest.pt 里在 best.pt 之外的那些。"""
        mine = asdict(self)
        del mine["iteration"], mine["val_loss"], mine["val_bpc"]  # best.pt 里也有
        return {"rng": {"seed": mine.pop("seed")}} | mine  # 每步的随机性由 (种子, 步数) 决定
