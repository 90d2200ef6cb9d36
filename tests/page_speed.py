"""网页有多快：`python tests/page_speed.py`，随机权重的默认模型（85M）。

量三样：60 行的歌里打一个字，从按键到排好版；点「写」到第一行出现在页面上（Chromium）；八位客户一起来与一位接一位，
各写多少词元一秒。
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import httpx2  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402
from tiny import REPOSITORY  # noqa: E402

import benchmark  # noqa: E402
from training import checkpoint  # noqa: E402
from writing.loading import READY  # noqa: E402

CLIENTS, TOKENS = 8, 60
FORM = "prompt=今夜我&lines=4&line_chars=7&rhyme=auto"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pt"
        _, tokenizer = checkpoint.restore(checkpoint.load(REPOSITORY / READY), path)
        checkpoint.save(path, checkpoint.model_contents(benchmark.default_model(), tokenizer, {}, 0, None, None))
        for dtype in ("int8", "fp32"):
            measure(path, dtype, options.chromium, options.rounds)


def measure(path: Path, dtype: str, chromium: str, rounds: int) -> None:
    command = [sys.executable, str(REPOSITORY / "webui.py"), "--checkpoint", str(path), "--dtype", dtype, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        url = next(line for line in process.stderr if "http://" in line).split()[1].split("（")[0]  # type: ignore[union-attr]
        keys = typing(url, chromium)
        print(f"60 行的歌里打一个字 {statistics.median(keys):.1f} 毫秒（最慢 {max(keys):.1f}）", flush=True)
        times = first_lines(url, chromium, rounds)
        print(f"{dtype}：点「写」到第一行 {statistics.median(times):.2f} 秒（{min(times):.2f}–{max(times):.2f}）")
        for name, workers in (("一位接一位", 1), (f"{CLIENTS} 位一起", CLIENTS)):
            print(f"{dtype}：{name}，{tokens_per_second(url, workers):.1f} 词元/秒", flush=True)
    finally:
        process.terminate()
        process.wait()


def typing(url: str, chromium: str) -> list[float]:
    """每个键几毫秒：从按下到这一行、这一页都排好版。"""
    song = "\n".join(f"第{number}行的月光照着你我" for number in range(60))
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        page.set_input_files("#file", {"name": "歌.txt", "mimeType": "text/plain", "buffer": song.encode()})
        page.locator(".text").nth(30).focus()
        page.wait_for_timeout(1000)
        page.evaluate(
            """() => {
              window.times = [];
              let began;
              addEventListener("keydown", () => (began = performance.now()), true);
              addEventListener("input", () => (document.body.offsetHeight, times.push(performance.now() - began)));
            }"""
        )
        for _ in range(100):
            page.keyboard.press("a")
            page.wait_for_timeout(20)
        times: list[float] = page.evaluate("times")
    return times


def first_lines(url: str, chromium: str, rounds: int) -> list[float]:
    """各次从点「写」到第一行写完（第二行出现，或写好）的秒数。"""
    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for number in range(rounds + 1):
            page = browser.new_context().new_page()  # 每次都是没有写过的浏览器
            page.goto(f"{url}#{FORM}&seed={number}")
            page.wait_for_selector("body[data-ready]")
            script = """() => new Promise((done) => {
              const began = performance.now();
              const look = () => {
                const line = document.querySelector(".text");
                if (line && line.value.length > 6) done(performance.now() - began);
                else requestAnimationFrame(look);
              };
              document.getElementById("write").click();
              look();
            })"""
            times.append(page.evaluate(script) / 1000)
            page.wait_for_selector("#write:not([hidden])")
    return times[1:]  # 第一次还在载入韵


def tokens_per_second(url: str, workers: int) -> float:
    def ask(seed: int) -> int:
        body = {"prompt": "今夜我", "max_tokens": TOKENS, "min_tokens": TOKENS, "seed": seed}
        answer = httpx2.post(f"{url}v1/completions", json=body, timeout=600, trust_env=False, verify=False)
        return answer.json()["usage"]["completion_tokens"]

    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        total = sum(pool.map(ask, range(CLIENTS)))
    return total / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
