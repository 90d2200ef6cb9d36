"""反复 kill -9 一次小训练，最后与没受打扰的训练逐位比较：`python tests/kill.py --kills 50`。

每次从头启动训练，在随机的时刻杀掉（清洗、分词、训练、评估、存检查点都可能被打断），检查留下的文件，
再启动；杀够之后让它自己训完。训练在 fork 出的子进程里做，省去每次载入 torch 的几秒。
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from forked import finish, fork  # noqa: E402
from tiny import TINY, assert_same_run, write_corpus  # noqa: E402

import train  # noqa: E402
from training import checkpoint  # noqa: E402

LONGER = ["--eval_interval", "8", "--n_embed", "64", "--batch_size", "8", "--patience", "none"]  # 不提前停


def start(folder: Path, name: str, log: Path, steps: int) -> int:
    """在子进程里开始（或接着）训练，返回进程号。"""
    places = ["--lyrics_dir", str(folder / "corpus"), "--checkpoint_dir", str(folder / name)]
    places += ["--cache_dir", str(folder / f"cache-{name}"), "--bpe_model_prefix", str(folder / f"bpe-{name}")]
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return fork(lambda: train.main([*TINY, *LONGER, "--train_iters", str(steps), *places]), (0, output, output))
    finally:
        os.close(output)


def inspect(directory: Path) -> str:
    """被杀之后留下的文件必须都是完好的；返回一句描述。"""
    found = []
    for name in (checkpoint.BEST, checkpoint.LATEST):
        if (directory / name).exists():
            contents = checkpoint.load(directory / name, for_resume=name == checkpoint.LATEST)
            checkpoint.restore(contents, directory / name)
            found.append(f"{name} 第 {contents['iter']} 步")
    metrics = directory / checkpoint.METRICS
    if metrics.exists():
        *whole, last = metrics.read_text(encoding="utf-8").split("\n")
        for line in whole:
            json.loads(line)
        found.append(f"记录 {len(whole)} 行" + ("，末行写了一半" if last else ""))
    if any(path.suffix == ".tmp" for path in directory.glob("*")):
        found.append("正在写临时文件")
    return "、".join(found) or "还没有文件"


def main() -> None:
    parser = argparse.ArgumentParser(description="反复 kill -9 一次小训练，最后与没受打扰的逐位比较。")
    parser.add_argument("--kills", type=int, default=50, help="杀几次（默认 50）")
    parser.add_argument("--seed", type=int, default=1, help="随机时刻的种子（默认 1）")
    parser.add_argument("--longest", type=float, default=1.5, help="启动后最晚多少秒杀（默认 1.5）")
    parser.add_argument("--steps", type=int, default=3000, help="训练的步数（默认 3000）")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    train.torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(folder / "corpus", 40)
        began = time.monotonic()
        assert finish(start(folder, "whole", folder / "whole.log", arguments.steps)) == 0, (
            folder / "whole.log"
        ).read_text()
        whole_seconds = time.monotonic() - began
        print(f"不受打扰的训练：{whole_seconds:.1f} 秒")
        kills = 0
        while kills < arguments.kills:
            process = start(folder, "killed", folder / "killed.log", arguments.steps)
            time.sleep(chance.uniform(0, arguments.longest))
            os.kill(process, signal.SIGKILL)
            code = finish(process)
            if code == 0:
                break
            assert code == -signal.SIGKILL, (folder / "killed.log").read_text()
            kills += 1
            print(f"第 {kills} 次 kill -9：{inspect(folder / 'killed')}")
        assert kills == arguments.kills, f"只杀了 {kills} 次就训完了：请加大 --steps"
        assert finish(start(folder, "killed", folder / "killed.log", arguments.steps)) == 0, (
            folder / "killed.log"
        ).read_text()
        assert_same_run(folder / "whole", folder / "killed")
    print(f"杀了 {kills} 次；权重、优化器状态、记录与不受打扰的训练逐位相同。")


if __name__ == "__main__":
    main()
