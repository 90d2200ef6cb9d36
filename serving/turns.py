"""排队：一个写歌的线程，先来先写。"""

import asyncio
import secrets
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lyrics.form import LyricsError
from terminal import is_out_of_memory

Event = dict[str, Any]  # 给客户的一件事；error 是一句话

CLOSING = "服务停了，写到的还在"


class Stopped(Exception):
    """不必再写：客户走了，写够了，或服务停了。"""


class OutOfTime(Exception):
    """一首歌写得太久。"""


class QueueFull(Exception):
    """排队的人满了。

    Attributes:
        seconds: 过多少秒再来。
    """

    def __init__(self, seconds: int) -> None:
        super().__init__("排队的人满了")
        self.seconds = seconds


class Turn:
    """一位客户的一次。

    Attributes:
        events: 给客户的事，依次；None 是完了。
    """

    def __init__(self, work: "Callable[[Turn], None]", loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.work, self.events = work, asyncio.Queue[Event | None]()
        self._loop, self._seconds = loop, seconds
        self._left, self._deadline = threading.Event(), float("inf")

    def begin(self) -> None:
        self._deadline = time.monotonic() + self._seconds

    def check(self) -> None:
        """
        Raises:
            Stopped, OutOfTime: 不该再写了。
        """
        if self._left.is_set():
            raise Stopped
        if time.monotonic() > self._deadline:
            raise OutOfTime(f"写了 {self._seconds:g} 秒还没有写完，停在这里")

    def stop(self) -> None:
        self._left.set()

    def tell(self, event: Event | None) -> None:
        """从哪个线程都可以。"""
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Turns:
    """队列；除了写的那个线程，都在事件循环里。

    Args:
        most_waiting: 正写着的之外，至多几位等着。
        seconds: 一次至多写多久。
    """

    def __init__(self, most_waiting: int, seconds: float) -> None:
        self.most_waiting, self.seconds = most_waiting, seconds
        self._line: deque[Turn] = deque()  # 头一位正在写
        self._thread = ThreadPoolExecutor(1, "writer")
        self._usual = 1.0  # 一次大约几秒
        self._closed = False

    def __len__(self) -> int:
        return len(self._line)

    def join(self, work: Callable[[Turn], None]) -> Turn:
        """
        Raises:
            QueueFull: 满了，或服务正在停。
        """
        if self._closed or len(self._line) > self.most_waiting:
            raise QueueFull(max(1, min(60, round(self._usual * len(self._line)))))
        turn = Turn(work, asyncio.get_running_loop(), self.seconds)
        self._line.append(turn)
        if len(self._line) == 1:
            self._begin(turn)
        else:
            turn.events.put_nowait({"place": len(self._line) - 1})
        return turn

    def leave(self, turn: Turn) -> None:
        """客户走了，或已经收完：还没轮到的不写了，正写着的停下。"""
        turn.stop()
        if turn in self._line and turn is not self._line[0]:
            self._line.remove(turn)
            self._tell_places()

    def close(self) -> None:
        """服务要停：告诉每一位，都不写了。"""
        self._closed = True
        for turn in list(self._line):
            turn.stop()
            turn.tell({"error": CLOSING, "status": 503})
            turn.tell(None)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, turn: Turn) -> None:
        began = time.monotonic()
        turn.events.put_nowait({"place": 0})
        future = asyncio.get_running_loop().run_in_executor(self._thread, run, turn)
        future.add_done_callback(lambda _: self._finished(time.monotonic() - began))

    def _finished(self, seconds: float) -> None:
        self._usual += 0.3 * (seconds - self._usual)
        self._line.popleft()
        if self._line and not self._closed:
            self._begin(self._line[0])
            self._tell_places()

    def _tell_places(self) -> None:
        for place, turn in enumerate(self._line):
            if place:
                turn.events.put_nowait({"place": place})


def run(turn: Turn) -> None:
    """在写的线程里：做完这一次，出了什么事都告诉客户，线程不倒。"""
    turn.begin()
    try:
        turn.check()
        turn.work(turn)
    except Stopped:
        pass
    except (OutOfTime, LyricsError) as error:
        turn.tell({"error": str(error), "status": 400})
    except Exception as error:
        turn.tell({"error": told(error), "status": 500})
    turn.tell(None)


def told(error: Exception) -> str:
    """程序的错误：回溯写到终端，给客户一个编号。"""
    if is_out_of_memory(error):
        return "内存或显存不足：请少写几首、几稿"
    number = secrets.token_hex(4)
    print(f"错误 {number}：", file=sys.stderr)
    traceback.print_exception(error)
    return f"程序出错了，编号 {number}；回溯在运行 webui.py 的终端里"


async def while_there(receive: Any, work: Coroutine[Any, Any, Any]) -> Any:
    """做 work，客户走了就不做；走了的结果是 None。"""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()
