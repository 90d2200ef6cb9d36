"""分词器：任何文字都原样还原，任何文字都变不成控制词元。"""

import io
import random

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tokenizer as tokenizer_module
from tokenizer import StreamingDecoder, Tokenizer, TokenizerError, achievable_vocab_size

AWKWARD = [
    "",
    "\n",
    "\n\n今夜我\n\n",
    " ",
    "  两个空格  ",
    " \n ",
    "\t\r\n",
    "\u2581",
    "\u2581今夜 \u2581 我\u2581",
    "\0今\0",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<title>歌名<singer>歌手<lyric>",
    "<0x41>",
    "<0x0A>",
    "，。！？；：“”（）…—",
    "Ａｂｃ１２３　ｆｕｌｌ",
    "e\u0301 é ﬁ ① ㍿",
    "👨‍👩‍👧‍👦𠮷\U0010ffff",
    "\ufeff\u200b\ufffd",
]
LETTERS = [chr(0x4E00 + 31 * index) for index in range(200)]

any_text = st.text(st.characters(codec="utf-8"))
likely_text = st.lists(
    st.sampled_from([*AWKWARD, *LETTERS[:20], "今夜我", "在风里", " ", "\n", "a", "<", ">", "\u2581"])
).map("".join)


def with_awkward_examples(test):
    for text in AWKWARD:
        test = example(text)(test)
    return settings(max_examples=150)(given(any_text | likely_text)(test))


def verses(seed: int, lines: int, alphabet=LETTERS) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(alphabet, k=draw.randint(5, 9))) for _ in range(lines)]


@pytest.fixture(scope="module")
def bpe():
    """训练语料里没有一个空格。"""
    lines = verses(0, 300) + ["今夜我在风里等你", "如果爱，请深爱！", "Oh"] * 30
    assert not any(" " in line for line in lines)
    return tokenizer_module.train(lines, 700)


def controls(tokenizer: Tokenizer) -> set[int]:
    return {tokenizer.bos_id, tokenizer.eos_id, tokenizer.title_id, tokenizer.singer_id, tokenizer.lyric_id}


# ---- 还原 ----


@with_awkward_examples
def test_round_trip(bpe, text):
    """decode(encode(s)) == s，换行、空格、U+2581、NUL、字面的 <s> 都在内。"""
    assert bpe.decode(bpe.encode(text)) == text


@with_awkward_examples
def test_text_never_becomes_control(bpe, text):
    """文字里不会出现控制词元或未知词元。"""
    assert not (controls(bpe) | {bpe.unk_id}) & set(bpe.encode(text))


@settings(max_examples=50)
@given(st.lists(any_text | likely_text, max_size=8))
def test_batch_equals_single(bpe, texts):
    """整批编码与逐个编码相同：训练语料与用户的开头用同一种切法。"""
    assert bpe.encode_batch(texts, threads=2) == [bpe.encode(text) for text in texts]


@with_awkward_examples
def test_characters_add_up(bpe, text):
    """词元的字数加起来是文字的字数，每字比特数才算得对。"""
    assert bpe.token_characters[bpe.encode(text)].sum() == len(text)


def test_control_tokens_hold_no_characters(bpe):
    """控制词元不算字，也不写出文字。"""
    ids = sorted(controls(bpe) | {bpe.unk_id})
    assert bpe.token_characters[ids].sum() == 0
    assert bpe.decode(ids) == ""


def test_full_width_and_new_lines_stay(bpe):
    """sentencepiece 默认会把全角标点变半角、换行变空格。"""
    text = "如果爱，请深爱！\n　　Ａ"
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.encode("\n") == [bpe.newline_id]
    assert bpe.encode("今夜我\n在风里").count(bpe.newline_id) == 1


def test_space_is_one_token_without_spaces_in_corpus(bpe):
    """语料里没有空格时，空格仍是一个词元，而不是 U+2581 的三个字节。"""
    assert len(bpe.encode(" ")) == 1
    assert bpe.encode(" ") != bpe.encode("\u2581")
    assert bpe.decode(bpe.encode(" ")) == " "


def test_no_space_is_added_in_front(bpe):
    """开头不加空格：接着写时不会凭空多一个。"""
    assert bpe.decode(bpe.encode("今夜我")[:1]).startswith("今")
    assert bpe.encode("今夜") != bpe.encode(" 今夜")


# ---- 流式解码 ----


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    decoder = StreamingDecoder(tokenizer)
    return "".join(decoder.push(index) for index in ids)


@with_awkward_examples
def test_streaming_equals_text(bpe, text):
    """逐个词元写出的文字连起来就是原文。"""
    assert streamed(bpe, bpe.encode(text)) == text


@settings(max_examples=300)
@given(st.data())
def test_streaming_any_tokens(bpe, data):
    """任意词元序列（乱的字节、控制词元）：与 decode 一致，从不写出半个字或 U+FFFD。"""
    any_token = st.integers(0, bpe.vocab_size - 1)
    byte_token = st.sampled_from([index for index in range(bpe.vocab_size) if bpe._processor.is_byte(index)])
    ids = data.draw(st.lists(any_token | byte_token, max_size=40))
    text = streamed(bpe, ids)
    assert text == bpe.decode(ids)
    if b"\xef\xbf\xbd" not in b"".join(bpe.token_bytes[index] for index in ids):
        assert "\ufffd" not in text
    text.encode("utf-8")  # 没有半个代理对


def test_streaming_waits_for_the_whole_character(bpe):
    """一个字的字节没到齐之前什么也不写。"""
    ids = bpe.encode("𠮷")
    assert len(ids) == 4
    decoder = StreamingDecoder(bpe)
    assert [decoder.push(index) for index in ids] == ["", "", "", "𠮷"]


# ---- 一首歌的布局 ----


@pytest.mark.parametrize(
    ("title", "singer"), [("", ""), ("如果爱", ""), ("", "某人"), ("如果爱", "某人"), ("<lyric>", "</s>")]
)
def test_song_layout(bpe, title, singer):
    """`<s> [<title> 歌名] [<singer> 歌手] <lyric> 正文`，没有的部分连标记一起省去，不含 `</s>`。"""
    text = "今夜我\n在风里"
    expected = [bpe.bos_id]
    expected += [bpe.title_id, *bpe.encode(title)] if title else []
    expected += [bpe.singer_id, *bpe.encode(singer)] if singer else []
    expected += [bpe.lyric_id, *bpe.encode(text)]
    ids = bpe.song(text, title, singer)
    assert ids == expected
    assert [index for index in ids if index in controls(bpe)] == [
        bpe.bos_id,
        *([bpe.title_id] if title else []),
        *([bpe.singer_id] if singer else []),
        bpe.lyric_id,
    ]


def test_never_written_leaves_only_the_end(bpe):
    """生成时除 `</s>` 外的控制词元与未知词元都不许出现；控制字符的字节抽到了就另抽。"""
    bytes_of_controls = {bytes([code]) for code in (*range(32), 127)} - {b"\n"}
    characters = {index for index, piece in enumerate(bpe.token_bytes) if piece in bytes_of_controls}
    assert len(characters) == 32
    assert set(bpe.control_characters) == characters
    assert set(bpe.never_written) == (controls(bpe) - {bpe.eos_id}) | {bpe.unk_id}
    assert len(controls(bpe)) == 5


# ---- 词表大小 ----


def test_small_corpus_lowers_vocabulary():
    """语料太小时词表自动减小，而不是报错或留下练不到的词元。"""
    lines = verses(1, 60)
    trained = tokenizer_module.train(lines, 10_000)
    characters, distinct = len("".join(lines)), len(set("".join(lines)))
    assert trained.vocab_size <= achievable_vocab_size(characters, distinct, 10_000) < 1000
    assert trained.decode(trained.encode("\n".join(lines))) == "\n".join(lines)


def test_large_corpus_keeps_the_wish():
    """语料够大时就是想要的大小。"""
    assert achievable_vocab_size(10**7, 5000, 10_000) == 10_000
    enough = 500 * tokenizer_module.CHARACTERS_PER_TOKEN_FLOOR // 5
    assert tokenizer_module.train(verses(2, enough), 500).vocab_size == 500


def test_too_small_vocabulary_names_the_number():
    """词表装不下常用字时说出够用的数，照着设就能训练。"""
    lines = verses(3, 300)
    with pytest.raises(TokenizerError, match="300.*BPE_VOCAB_SIZE") as caught:
        tokenizer_module.train(lines, 300)
    fewest = int(str(caught.value).split("设为 ")[1].split(" ")[0])
    assert fewest > 300
    with pytest.raises(TokenizerError):
        tokenizer_module.train(lines, fewest - 1)
    trained = tokenizer_module.train(lines, fewest)
    assert trained.vocab_size <= fewest
    assert trained.decode(trained.encode(lines[0])) == lines[0]


def test_training_repeats():
    """同样的语料训练出同一个模型：否则缓存与检查点会无端对不上。"""
    lines = verses(4, 200)
    assert tokenizer_module.train(lines, 500).model_bytes == tokenizer_module.train(lines, 500).model_bytes


# ---- 读入 ----


def test_load_from_file(bpe, tmp_path):
    """文件里的模型与内存里的一样。"""
    path = tmp_path / "bpe.model"
    path.write_bytes(bpe.model_bytes)
    loaded = Tokenizer.load(path)
    assert loaded.fingerprint == bpe.fingerprint
    assert loaded.encode("今夜我\n在风里") == bpe.encode("今夜我\n在风里")


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "last byte", "reversed", "text"])
def test_damaged_model(bpe, damage, capfd):
    """损坏的模型是一句中文错误，也不让 sentencepiece 往 stderr 刷屏。"""
    content = bpe.model_bytes
    damaged = {
        "empty": b"",
        "garbage": b"\xff" * 100,
        "truncated": content[: len(content) // 2],
        "last byte": content[:-1],
        "reversed": content[::-1],
        "text": "今夜我".encode() * 50,
    }[damage]
    with pytest.raises(TokenizerError, match="分词模型"):
        Tokenizer(damaged)
    assert len(capfd.readouterr().err.splitlines()) <= 2


def test_foreign_model():
    """别处训练的 sentencepiece 模型缺少本仓库的控制词元，要说出来。"""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(verses(5, 100)),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(TokenizerError, match="不是本仓库"):
        Tokenizer(model.getvalue())
