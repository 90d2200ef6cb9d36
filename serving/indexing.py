"""语料的索引：没有就在另一个线程里建，页面不等它；建不成的说一句为什么。"""

import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from lyrics.copies import CopyIndex
from lyrics.form import LyricsError
from writing.writer import Writer


class Indexing:
    """
    Args:
        build: 建索引；在另一个线程里。
        say: 收一行消息，写到终端上。

    Attributes:
        reason: 现在没有索引是为什么；有了就是空的。
        building: 正在建。
    """

    def __init__(self, writer: Writer, build: Callable[[], CopyIndex], say: Callable[[str], None]) -> None:
        self._writer, self._build, self._say = writer, build, say
        self.reason, self.building = "语料的索引还在建，建好了就能查照抄", True
        writer.find_copies = self._refuse

    def start(self) -> None:
        threading.Thread(target=self._run, name="index", daemon=True).start()

    def _run(self) -> None:
        try:
            self._writer.copies = self._build()
            self.reason = ""
        except LyricsError as error:
            self.reason = "；".join(str(error).split("\n"))
        except Exception as error:  # 没有索引也能写歌
            traceback.print_exception(error)
            self.reason = f"建不了语料的索引：{type(error).__name__}，回溯在运行 webui.py 的终端里"
        self.building = False
        if self.reason:
            self._say(f"不查照抄：{self.reason}")

    def _refuse(self) -> NoReturn:
        raise LyricsError(f"--max_copy 现在用不了：{self.reason}")
