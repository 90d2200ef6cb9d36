"""配方的实验：一个接一个地训练，每次在结果文件里记一行 JSON；停下再运行，从没有跑完的接着。

    python tests/recipe.py tests/recipe.json --only 丙 --out 结果.jsonl [-- 各次都用的参数 …]

实验的文件是 `{"名字": ["--muon_learning_rate", "3e-3"], …}`；每个的检查点在结果文件旁同名的文件夹里，词元缓存共用。
--plot 图.png 把结果里的各条曲线画成图（几个种子取平均），`--curves 一,二` 只画这几个。
一行里有：名字、参数、各次评估的每字比特数、最好的、训练的秒数、内存峰值、词元/秒的中位数。docs/recipe.md 的各行由它来。
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="1337", help="逗号隔开")
    parser.add_argument("--jobs", type=int, default=1, help="同时几个训练；多于一个时每个只用一个线程，合起来更快")
    parser.add_argument("--only", default="", help="只跑名字这样开头的")
    parser.add_argument("--plot", type=Path, help="跑完画成图")
    parser.add_argument("--curves", default="", help="画哪几个，逗号隔开；不给就全画")
    given, common = parser.parse_known_args()
    common = [argument for argument in common if argument != "--"]
    experiments = json.loads(given.experiments.read_text(encoding="utf-8"))
    experiments = {name: each for name, each in experiments.items() if name.startswith(given.only)}
    writing = threading.Lock()

    def one(name: str, seed: str) -> None:
        arguments = [*common, *experiments[name], "--seed", seed]
        if arguments not in [row["arguments"] for row in finished(given.out)]:
            folder = given.out.with_suffix("") / f"{name}-{seed}"
            row = {"name": name, "arguments": arguments} | run(arguments, folder, given.jobs)
            with writing, given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        with writing:
            print(next(line(row) for row in finished(given.out) if row["arguments"] == arguments), flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        for seed in given.seeds.split(","):
            for name in experiments:
                pool.submit(one, name, seed)
    if given.plot is not None:
        plot(finished(given.out), given.curves, given.plot)


def plot(rows: list[dict[str, Any]], wanted: str, path: Path) -> None:
    """各个实验的验证曲线，几个种子的平均。"""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = wanted.split(",") if wanted else list(dict.fromkeys(row["name"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=110)
    for name in names:
        curves = [row["curve"] for row in rows if row["name"] == name]
        steps = [step for step in curves[0] if all(step in curve for curve in curves)]
        axes.plot([int(step) for step in steps], [statistics.mean(curve[step] for curve in curves) for step in steps])
    axes.legend(names)
    axes.set(xlabel="steps", ylabel="bits per character (held out)")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def finished(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run(arguments: list[str], folder: Path, jobs: int) -> dict[str, Any]:
    """一次训练；中断过的接着。"""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, REPOSITORY / "train.py", "--checkpoint_dir", folder, "--use_swanlab", "false"]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})
        subprocess.run([*map(str, command), *arguments], stdout=log, stderr=log, check=True, env=environment)
    metrics = [json.loads(text) for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = {str(row["iter"]): round(row["val_bpc"], 4) for row in metrics if "val_bpc" in row}
    steps = [row for row in metrics if "train_loss" in row]
    return {
        "val_bpc": min(curve.values()),
        "last_bpc": list(curve.values())[-1],
        "curve": curve,
        "train_loss": round(statistics.mean(row["train_loss"] for row in steps[-5:]), 4),
        "seconds": round(metrics[-1]["time"] - steps[0]["time"], 1),
        "tokens_per_s": round(statistics.median(row["tokens_per_s"] for row in steps[1:])),
        "peak_memory_gb": max(row["peak_memory_gb"] or 0 for row in steps),
    }


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['name']}: {row['val_bpc']:.4f} 比特/字（末次 {row['last_bpc']:.4f}，训练损失 {row['train_loss']:.3f}），"
        f"{row['seconds']:.0f} 秒，{row['tokens_per_s']:,} 词元/秒，{row['peak_memory_gb']:.2f} GB"
    )


if __name__ == "__main__":
    main()
