"""sentencepiece BPE 分词器：训练、编码、解码、流式解码。

词表开头是 `<unk> <s> </s> <title> <singer> <lyric>` 和换行，随后 256 个字节词元：词表里没有的字
按 UTF-8 字节编码，所以任何合法的 Unicode 字符串都能原样还原。控制词元用 sentencepiece 的
control symbol，文字里写 `<lyric>` 只会得到普通字符，不会变成控制词元。
"""

import codecs
import functools
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

CONTROL_SYMBOLS = ("<title>", "<singer>", "<lyric>")
RESERVED = 7 + 256 + 1  # 特殊词元与换行、字节词元、空格
SPACE_MARK = "\u2581"  # sentencepiece 内部用它表示空格；文字里真有它时走字节词元
CHARACTERS_PER_TOKEN_FLOOR = 24  # 语料字数 / 词表大小的下限，再大的词表多数词元练不到几次
LOWEST_COVERAGE = 0.98  # sentencepiece 接受的最低单字覆盖率
TRAINING_SENTENCES = 1_000_000  # 训练分词器最多抽取的行数
SETTINGS_VERSION = 1  # 训练方法有变时加一，旧分词模型随之重训


_CONTROL_CHARACTERS = frozenset(bytes([code]) for code in (*range(0x20), 0x7F) if code != 0x0A)


class TokenizerError(ValueError):
    """分词模型损坏，或不是本仓库训练的分词模型。"""


class Tokenizer:
    """文字 ↔ 词元编号。

    Attributes:
        model_bytes: sentencepiece 模型文件的全部内容。
        vocab_size: 词表大小。
        bos_id, eos_id, unk_id, title_id, singer_id, lyric_id, newline_id: 特殊词元的编号。
        token_bytes: 每个词元的 UTF-8 字节（控制词元为空）。
        token_characters: (vocab_size,) int64，每个词元含几个字；多字节字算在首字节上。

    Raises:
        TokenizerError: 模型损坏或缺少本仓库的特殊词元。
    """

    def __init__(self, model_bytes: bytes) -> None:
        try:
            if not model_bytes:  # 空的模型 sentencepiece 不报错，只会在每次调用时刷屏
                raise RuntimeError
            processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError:
            raise TokenizerError("分词模型损坏") from None
        self.model_bytes = model_bytes
        self._processor = processor
        self.vocab_size = processor.vocab_size()
        self.bos_id, self.eos_id, self.unk_id = processor.bos_id(), processor.eos_id(), processor.unk_id()
        self.title_id, self.singer_id, self.lyric_id = (processor.piece_to_id(s) for s in CONTROL_SYMBOLS)
        self.newline_id = processor.piece_to_id("\n")
        self._byte_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        special = [self.bos_id, self.eos_id, self.title_id, self.singer_id, self.lyric_id, self.newline_id]
        if self.unk_id in special + self._byte_ids or -1 in special:
            raise TokenizerError("不是本仓库训练的分词模型（缺少 <lyric>、换行或字节词元）")
        self.token_bytes = [self._bytes_of(index) for index in range(self.vocab_size)]
        self.token_characters = np.array([_count_characters(piece) for piece in self.token_bytes], dtype=np.int64)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """从 .model 文件读入。"""
        return cls(Path(path).read_bytes())

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model_bytes).hexdigest()

    @property
    def never_written(self) -> list[int]:
        """生成时不许出现的词元：除 `</s>` 外的控制词元和未知词元。"""
        return [self.unk_id, self.bos_id, self.title_id, self.singer_id, self.lyric_id]

    @functools.cached_property
    def control_characters(self) -> list[int]:
        """控制字符的字节：抽到了就另抽一个。"""
        return [index for index, piece in enumerate(self.token_bytes) if piece in _CONTROL_CHARACTERS]

    def _bytes_of(self, index: int) -> bytes:
        if self._processor.is_control(index) or self._processor.is_unknown(index):
            return b""
        piece = self._processor.id_to_piece(index)
        if self._processor.is_byte(index):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE_MARK, " ").encode("utf-8")

    def encode(self, text: str) -> list[int]:
        """任意合法 Unicode 字符串 → 词元；结果不含控制词元。"""
        return self._encode_space_mark(text) if SPACE_MARK in text else self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """一批字符串 → 一批词元列表。"""
        encoded = self._processor.encode(list(texts), num_threads=threads)
        for index, text in enumerate(texts):
            if SPACE_MARK in text:
                encoded[index] = self._encode_space_mark(text)
        return encoded

    def _encode_space_mark(self, text: str) -> list[int]:
        mark = [self._byte_ids[byte] for byte in SPACE_MARK.encode("utf-8")]
        ids: list[int] = []
        for index, part in enumerate(text.split(SPACE_MARK)):
            ids += (mark if index else []) + self._processor.encode(part)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """词元 → 文字；控制词元不写出，凑不成字的字节略去。decode(encode(s)) == s。"""
        return b"".join(self.token_bytes[index] for index in ids).decode("utf-8", errors="ignore")

    def song(self, text: str, title: str = "", singer: str = "") -> list[int]:
        """一首歌（或它的开头）的词元：`<s> [<title> 歌名] [<singer> 歌手] <lyric> 正文`，不含 `</s>`。"""
        ids = [self.bos_id]
        if title:
            ids += [self.title_id, *self.encode(title)]
        if singer:
            ids += [self.singer_id, *self.encode(singer)]
        return [*ids, self.lyric_id, *self.encode(text)]


class StreamingDecoder:
    """逐个词元解码；一个字的字节没到齐之前不写出，所以从不出现半个字。"""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def push(self, token: int) -> str:
        """收下一个词元，返回现在可以写出的文字（可能为空）。"""
        return self._decoder.decode(self._token_bytes[token])


def _count_characters(piece: bytes) -> int:
    return sum(byte & 0xC0 != 0x80 for byte in piece)  # UTF-8 的后续字节是 10xxxxxx


def achievable_vocab_size(characters: int, distinct: int, wanted: int) -> int:
    """语料撑得起的词表大小：平均每个词元至少 24 个字的语料，但容得下全部单字。"""
    return min(wanted, max(RESERVED + distinct, characters // CHARACTERS_PER_TOKEN_FLOOR))


def train(lines: Sequence[str], vocab_size: int) -> Tokenizer:
    """训练 BPE。

    Args:
        lines: 文字行，不含换行；换行本身是固定的词元。
        vocab_size: 想要的词表大小；语料太小时结果会更小。

    Raises:
        TokenizerError: 词表小得装不下常用字。
    """
    counts = Counter("".join(lines))
    characters = counts.total()
    wanted, vocab_size = vocab_size, achievable_vocab_size(characters, len(counts), vocab_size)
    covered = np.cumsum([count for _, count in counts.most_common()]) / characters
    fewest = RESERVED + int(np.searchsorted(covered, LOWEST_COVERAGE)) + 1
    if vocab_size < fewest:
        raise TokenizerError(f"词表 {vocab_size} 装不下这份语料的常用字；请把 BPE_VOCAB_SIZE 设为 {fewest} 以上")
    # 单字占去词表一半为止，其余留给词，罕见字走字节词元：同样的步数，每字比特数更低。
    # 语料小得减小了词表时放宽到九成：练得少的模型写不好由字节拼成的字。
    share = 0.9 if vocab_size < wanted else 0.5
    coverage = covered[min(len(covered), max(1, int(share * (vocab_size - RESERVED)))) - 1]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=float(np.clip(coverage, LOWEST_COVERAGE, 0.9995)),
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        required_chars=SPACE_MARK,  # 语料里没有空格时也要有空格词元，否则空格会变成 U+2581 的字节
        control_symbols=list(CONTROL_SYMBOLS),
        input_sentence_size=TRAINING_SENTENCES,
        shuffle_input_sentence=True,
        max_sentence_length=1 << 20,
        num_threads=2,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue())
