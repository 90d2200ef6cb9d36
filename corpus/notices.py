"""单看一行就定的：版权声明、网站与编辑者的话，段落、反复、声部的标记。"""

import re

from corpus.credit_lines import DECORATION, key_kind
from corpus.credit_words import simpler

_NOTICE = re.compile(
    r"^\W*歌词\s*[:：]\W*$|加[VvＶ]\W*[\w-]{5,}|全国接单|^\W*编辑\s*[:：].*歌词|lrc ?maker|"
    r"thanks? to .{1,20} for (?:these|the) lyrics|"
    r"^\W*[此该本]版本为|^\W*(?:本|此)翻译由|"
    r"加入.{0,8}[Qq]?群\W*\d|公众号.{1,20}(?:下载|获取|领取|收听)|[订订]阅.{0,4}频道|^\W*二次创作\W|设为彩铃|"
    r"滚动歌词\s*[:：]|"
    r"^genius .{2,20}translations?\W*$|^\W*read more\W*$|^(?:#\S*(?:音乐|歌单|民谣|翻唱|原创|抖音)\S*\s*)+$|"
    r"(?:填词|作词|作曲|编曲|谱曲)于.{0,4}\d{4}|"
    r"^\W*(?:本|以上)?(?:歌词|音频|视频|翻唱)仅供[^\s:：]{0,16}|^\W*歌词(?:来自|下载)|欢迎(?:访问|"
    r"关注).{0,6}(?:www|公众号|微博)|歌词网\W|"
    r"(?:音乐|平台|全网).{0,4}(?:独家)?首发\W*$|^\W*(?:歌词|翻译)*转载(?:请)?注明出处\W*$|以正式发行为准|"
    r"(?:已在)?全网上线\W*$|"
    r"^\W*(?:\d{4}[年.\-/].{0,10})?(?:写|录|作|录制|录音|创作|改)于.{0,6}\d{2,4}.{0,24}$|"
    r"^\W*\d{4}[年.\-/].{0,10}(?:写|录|作|录制|录音|创作|修订)(?:于[^的]{1,16}$|完成|$)|"
    r"(?:授权|合作)(?:请联系|微信|邮箱|电话)|^\W*更多作品|^\W*感谢(?:您的)?(?:聆听|收听|观看)\W*$|"
    r"^\W*感谢(?:所有)?参与|"
    r"^\W*感谢\s?[^\s你您我他她]{1,12}\s?(?:提供|校正|制作|上传)|^\W*(?:歌曲|全曲|全歌|歌词)结束\W*$|"
    r"^[\w（）()·]{4,30}有限公司\W*$|\bco\.,? ?ltd\.?\W*$|"
    r"未经.{0,14}(?:许可|授权|同意|允许).{0,6}(?:不得|禁止|请勿|严禁|不可|任何)|未经.{0,10}(?:著作权|版权|权利|"
    r"作者|书面).{0,8}(?:许可|授权|同意)|"
    r"^\W*未经(?:许可|授权|允许)\W*$|(?:不得|请勿|禁止|严禁|谢绝)(?:擅自|任意|以任何)?(?:翻唱|翻录|转载|使用|商用|"
    r"盗用|二传|二次上传|二改|复制|录制|改编)(?:$|[、，,。！!\s或与及和]|本|此|及)|"
    r"(?:此|该|本)(?:歌曲|曲|首|音乐|作品).{0,8}(?:纯音乐|没有填词|无歌词|暂无歌词)|^\W*(?:这是|此为|"
    r"此曲为)?(?:一首)?(?:没有填词的)?纯音乐\W{0,3}(?:请.{0,4}欣赏|无歌词)?\W*$|纯音乐.{0,4}请.{0,4}欣赏|"
    r"没有填词的纯音乐|"
    r"^\W*(?:暂无歌词(?=\W*$|[，,。])|(?:该|本|此)歌曲?(?:暂无|没有)歌词|无歌词(?=\W*$)|歌词(?:待补|暂缺|缺失|"
    r"整理中|求补)).{0,16}$|"
    r"享有.{0,12}翻译作品|翻译作品.{0,6}著作权|^\W*以[上下](?:歌词)?翻译由|^\W*(?:以上|以下)?歌词(?:翻译|文本|"
    r"内容)?由.{1,24}(?:提供|整理|翻译|上传|制作)|"
    r"(?:文曲|腾讯|某\w)大模型提供|版权(?:所有|归|属)[^你我他她]{0,20}(?:所有|公司|作者|未经|翻印|侵权必|"
    r"必究)(?!的)|版权归原?作者|版权所有(?=\W*$|\W{0,3}(?:未经|翻|不得|违者|盗|侵权必|请勿|严禁|©|[A-Za-z0-9]|"
    r".{0,20}公司))|著作权(?:所有|归|属)|版权属.{2,20}$|侵权(?:必究|必删|即删|请联系)(?![\u4e00-\u9fff])|"
    r"^\W*(?:all|some) rights reserved\W*$|^\W*(?:[©℗Ⓟ]|\([cp]\)).{0,4}(?:\d{4}|[©℗]|\S+(?:公司|文化|音乐|委员会|"
    r"records|music))|[©℗Ⓟ]\s*\d{4}|^\W*copyright\W+(?:©|\(c\)|\d{4})|"
    r"更多更?详?尽?.{0,4}歌词|更多.{0,6}歌词.{0,4}(?:请|尽在|在|见)|魔镜歌词网|mojim|kkbox|"
    r"(?:歌词|翻译)(?:制作|编辑|贡献|上传|校对|提供|整理|来源|收录)者?\s*[:：]|(?:lrc|歌词)\s*(?:by|制作|"
    r"编辑)\s*[:：]?\s*\S|^\W*by\s*[:：]|\blrc\s*by\b|歌词滚动姬|"
    r"https?://|[a-z0-9]\.(?:com|cn|net|org|cc)(?:\W|$)|\S+@\S+\.(?:com|cn|net|org)|"
    r"严禁搬运|举报歌词|听歌识曲|^\W*正在播放\s*[:：]|^\W*(?:转自|发表于|创作于|录于|摄于|录制于)\s*(?:\d|某|"
    r".{1,16}(?:网|吧|论坛|社区|家中|录音|棚|[冬春夏秋]$))|编辑过\W*$|(?:改编|衍生|取材)自.{0,12}[《〈「]|"
    r"^\W*翻自\s|^\W*(?:所有|全部)?(?:音乐|词曲|歌曲)?由.{1,16}(?:演唱|演奏|创作|独家呈现|制作|提供|出品|作词|作曲|"
    r"编曲)\W*$|(?:首歌|歌曲|本曲).{0,4}由[^你我]{1,12}(?:作词|作曲|编曲|演唱|创作)|(?:合作|商演|演出|"
    r"授权).{0,4}请?致电|"
    r"^\W*originally (?:performed|recorded) by|"
    r"侵删|非商用(?![\u4e00-\u9fff])|禁止商用(?![\u4e00-\u9fff])|^\W*(?:本|此|该)歌词由|扫码关注.{0,6}(?:公众号|"
    r"微信|微博|领|下载|二维码|获取)|^\W*收录于.{0,6}[《〈]|rights reserved(?=\W*$|\W\s*unauthor)|unauthorized copying|"
    r"lyrics (?:licensed|provided|powered|are property)|not for commercial use|get tickets as low|"
    r"you might also like|"
    r"^\W*\d*\s*embed\W*$|^\W*\d+ contributors?|courtesy of\b|(?:interpolation|sample)s? (?:of|from)\b|^\W*(?:本|"
    r"此|该)(?:作品|曲|歌).{0,16}(?:授权|许可|改编|无关|所得|捐)|"
    r"^\W*由\s?ai\s?(?:生成|辅助|创作)|谨以此(?:歌|曲)(?:献给|送给|纪念|致)|^\W*歌词完\W*$|^\W*歌词.{0,10}(?:@|"
    r"＠)\S+|(?:加|进)群\W{0,3}\d{5,}|国作登字|^\W*第\s*[\d一二三四五六七八九十百]+\s*(?:首|节|段|章|遍|版)\W*$|"
    r"^\W*(?:recorded|filmed|performed) (?:live )?(?:at|in|by)\s+(?:the )?(?-i:[A-Z0-9\u4e00-\u9fff])|"
    r"^\W*仅供(?:学习|试听|个人|参考|交流|娱乐)[^\s:：]{0,16}$|24小时内删除\W*$|(?:扫码|关注|加入).{0,8}(?:公众号|微信|"
    r"微博|qq群|q群)|(?:qq|q|微信|交流)群\s*[:：]?\s*\d{5,}|"
    r"(?:本|此|该)(?:歌曲?|曲|作品|首歌).{0,10}(?:来自|收录|选自|出自|由.{1,16}(?:出品|制作|发行|授权|演唱))|"
    r"^\W*(?:收录于|选自|摘自)\W*(?:专辑|[《〈]).*$|感谢.{0,12}(?:提供歌词|提供的歌词|上传歌词)|"
    r"^\W*isrc\W*[a-z]{2}\W?\w{3}\W?\d{2}|^\W*ccli\b|^\W*1\s*=\s*[#b♭]?[a-g]\b|"
    r"^\W*(?:音乐人|词曲|歌词|歌曲|作品).{0,10}(?:授权|版权|所有)(?:$|\W)|^\W*(?:制作|出品|发行|创作)(?:人员|名单|"
    r"信息)\W*$",
    re.I,
)
_PART = (
    r"(?:串烧|medley|verse|pre-?\s?chorus|post-?\s?chorus|chorus|bridge|pre-?hook|hook|intro|outro|interlude|"
    r"refrain|ending|rap|solo|music|"
    r"instrumental|break|breakdown|drop|spoken|coda|fin|fine|fade ?out|fade ?in|the end|end|repeat|talking|ad-?libs?|"
    r"主歌|副歌|导歌|前奏|间奏|尾奏|过门|过渡|桥段|桥|独白|念白|旁白|说唱|合唱|重复|反复|重唱|伴奏|尾声|前段|结尾|"
    r"开场|口白|对白|白|唱|音乐|过场|过场音乐|衬词|完|终|幕起|幕落|电话录音|观众合唱|掌声|鼓掌|欢呼|笑|笑声|哭|"
    r"哭声|停顿|叹气|live版|live|"
    r"(?:吉他|钢琴|贝斯|鼓|小提琴|电吉他|guitar|piano|drum|bass|sax|violin|instrumental)?\s?(?:独奏|solo|break))"
)
_PART_ORDER = r"(?:[ .\-]*(?:\d{1,2}|[A-Da-d]|[一二三四五六]|I{1,3}|one|two|three|four)\d?)"
_BARE_PART = re.compile(rf"^[ ♪♫～~\-—－–=*#]*{_PART}(?:{_PART_ORDER}|[ ]*[xX×*][ ]*\d+)?[ *#:：.…。~～\-—=♪♫]*$", re.I)
_PART_IN_BRACKETS = re.compile(
    rf"^[ ♪♫\-—=*#]*[\[［【（(〔{{<＜《〈「]\s*{_PART}(?:{_PART_ORDER}|完|"
    rf"结束)?(?:\s*[:：\-—/／&]\s*[^\]］】）)〕}}>》〉」]{{1,30}})?"
    rf"(?:\s*[xX×*]?\s*\d{{1,2}})?\s*[\]］】）)〕}}>＞》〉」][ :：.…xX×*\d\-—=]*$",
    re.I,
)
_REPEAT = re.compile(
    r"^[\s(（\[【#＃*＊※△☆]*(?:repeat|重复|反复|重唱|again|d\.?c\.?|"
    r"d\.?s\.?)[\s*＊#＃※△☆,，、.xX×\d()（）\]】一二三四次遍\-~至到]*$|^[\s(（\[【]*(?:重复|反复)(?:以上|前面|一次|"
    r"两次|副歌|主歌|全曲|全段|[A-D]段)(?:[一二三两\d][遍次])?[\s)）\]】]*$",
    re.I,
)
_SYMBOL_PARTS = re.compile(r"^[\s(（\[【]*[*＊#＃※△☆★@]+(?:[\s,，、/]+[*＊#＃※△☆★@]+)*\s*[)）\]】]*$")
_CHORDS = re.compile(r"^[\s|]*(?:[A-G][#b♯♭]?(?:m|maj|min|dim|aug|sus|add)?\d{0,2}(?:/[A-G][#b♯♭]?)?[\s|]+){2,}[\s|]*$")
_SCORE = re.compile(
    r"^\W*(?:1\s*=\s*[#b♭]?[A-G]|[A-G]\s*(?:调|大调|小调)(?:$|\s*\d)|capo\s*\d|[JＪ♩]\s*=\s*\d+|(?:tempo|"
    r"bpm)\W*\d+\s*(?:bpm)?\W*$|\d/\d拍?$)",
    re.I,
)
VOICES = re.compile(
    r"^[\[［【（(〔<]?\s*(?:男声?|女声?|合唱?|男女|齐唱?|童声|对唱|众|全体?|全员|独|男合|女合|合声|和声|女高|女低|男高|"
    r"男低|女中|轮唱|领唱|领|独唱|重唱|伴唱|童|众人|[男女]声合唱|[男女]声独唱|生|旦|净|丑|all|both|male|female|"
    r"duet|男[独白]?|女[独白]?)\s*[\]］】）)〕>]?\s*[:：]?$",
    re.I,
)
_NOT_A_PART = frozenset(
    (
        "掌声 鼓掌 欢呼 笑 笑声 哭 哭声 停顿 叹气 衬词 end music break drop rap solo fin fine live "
        "talking 完 终 对白 过场 幕起 幕落 白 唱 桥 音乐 结尾 开场 前段 伴奏 合唱 尾声 重复 反复 "
        "过渡"
    ).split()
) | {"the end"}


_ORDER_PART = re.compile(  # 「第二段」「【A段】」「【主歌第一段】」「(副歌重复一遍)」「（钢琴间奏）」「[间奏 8小节]」
    r"^\W*(?:(?:主歌|副歌)?第\s*[\d一二三四五六七八九十]{1,2}\s*[段节遍](?:主歌|副歌)?|[A-D]\d?\s*段)\W*$|"
    r"^\s*[\[［【（(]\s*(?:[A-D]\d?|(?:副歌|主歌|以上)?(?:重复|反复)[一二三两\d]?[遍次]?|"
    r"\w{0,4}(?:前奏|间奏|尾奏|interlude|instrumental)(?:[ :：]?\w[^，。！？]{0,11})?)\s*[\]］】）)]\s*$",
    re.I,
)


def is_part(line: str) -> bool:
    """段落、反复、声部的标记单独成一行。"""
    text = simpler(line)
    if (
        _PART_IN_BRACKETS.match(text)
        or _ORDER_PART.match(text)
        or _REPEAT.match(text)
        or _SYMBOL_PARTS.match(text)
        or (_CHORDS.match(text + " ") and re.search(r"[m7#♯♭|]|sus|add|dim", text))
        or _SCORE.match(text)
    ):
        return True
    played = re.match(r"^\W*[前间尾]奏\s*[:：]\s*(.{1,12})$", text)
    if played and key_kind(played[1]):
        return True
    bare = text.strip(DECORATION + ".…。:：").lower()
    if _BARE_PART.match(text):
        marked = bool(re.search(r"[:：.…\-—=♪♫*#\dxX×]", text))
        return bare not in _NOT_A_PART or marked or (bare in ("music", "solo", "end") and bare != text.strip())
    marked = text != text.strip("[［【（(〔<]］】）)〕>:： ")
    return bool(marked and VOICES.match(text))


def is_notice(line: str) -> bool:
    """版权声明、纯音乐、歌词网站与编辑者的话。"""
    text = simpler(line)
    found = _NOTICE.search(text)
    if found and "版权" in found[0] and re.search(r"[你我他她那这谁咱]|属于", text):
        return re.search(r"公司|作者|未经|有限", text) is not None
    if found and "必究" in text and not re.search(r"必究\W*$|公司|未经|转载", text):
        return False
    return found is not None
