"""lyrics/cipai.txt 写得对不对：每一栏合记号，名作合得上。"""

import re
from collections import Counter

import cipai_fit
import pytest
from cipai_fit import PATTERNS, fit, read_forms, sentences_of

FORMS = read_forms()
REQUIRED = "水调歌头 满江红 念奴娇 沁园春 临江仙 虞美人 声声慢 青玉案 如梦令".split()
COLUMNS = r"\| (\d+([-，]\d+)*) \| ([平仄中]+)( \| [A-F]( \| =\S+)?)?"

# 各家的名作，每句到韵脚为止（古籍，不在著作权的期限里）
KNOWN = dict(
    re.findall(
        "《(.+)》\n([^《]+)",
        """
《水调歌头》
明月几时有，把酒问青天。不知天上宫阙，今夕是何年。我欲乘风归去，又恐琼楼玉宇，高处不胜寒。
起舞弄清影，何似在人间。转朱阁，低绮户，照无眠。不应有恨，何事长向别时圆。
人有悲欢离合，月有阴晴圆缺，此事古难全。但愿人长久，千里共婵娟。
《满江红》
怒发冲冠，凭阑处潇潇雨歇。抬望眼仰天长啸，壮怀激烈。三十功名尘与土，八千里路云和月。
莫等闲白了少年头，空悲切。靖康耻，犹未雪。臣子恨，何时灭。驾长车踏破，贺兰山缺。
壮志饥餐胡虏肉，笑谈渴饮匈奴血。待从头收拾旧山河，朝天阙。
《念奴娇》
大江东去，浪淘尽千古风流人物。故垒西边，人道是三国周郎赤壁。乱石穿空，惊涛拍岸，卷起千堆雪。
江山如画，一时多少豪杰。遥想公瑾当年，小乔初嫁了，雄姿英发。羽扇纶巾，谈笑间樯橹灰飞烟灭。
故国神游，多情应笑我，早生华发。人间如梦，一尊还酹江月。
《沁园春》
孤鹤归飞，再过辽天，换尽旧人。念累累枯冢，茫茫梦境，王侯蝼蚁，毕竟成尘。
载酒园林，寻花巷陌，当日何曾轻负春。流年改，叹围腰带剩，点鬓霜新。交亲零落如云。又岂料如今馀此身。
幸眼明身健，茶甘饭软，非惟我老，更有人贫。躲尽危机，消残壮志，短艇湖中闲采莼。
吾何恨，有渔翁共醉，溪友为邻。
《临江仙》
夜饮东坡醒复醉，归来仿佛三更。家童鼻息已雷鸣。敲门都不应，倚杖听江声。长恨此身非我有，何时忘却营营。
夜阑风静縠纹平。小舟从此逝，江海寄馀生。
《虞美人》
春花秋月何时了。往事知多少。小楼昨夜又东风。故国不堪回首月明中。雕栏玉砌应犹在。只是朱颜改。
问君能有几多愁。恰似一江春水向东流。
《声声慢》
寻寻觅觅。冷冷清清，凄凄惨惨戚戚。乍暖还寒时候，最难将息。三杯两盏淡酒，怎敌他晚来风急。
雁过也，正伤心却是旧时相识。满地黄花堆积。憔悴损如今有谁堪摘。守着窗儿，独自怎生得黑。
梧桐更兼细雨，到黄昏点点滴滴。这次第，怎一个愁字了得。
《青玉案》
东风夜放花千树。更吹落星如雨。宝马雕车香满路。凤箫声动，玉壶光转，一夜鱼龙舞。蛾儿雪柳黄金缕。
笑语盈盈暗香去。众里寻他千百度。蓦然回首，那人却在，灯火阑珊处。
《如梦令》
常记溪亭日暮。沉醉不知归路。兴尽晚回舟，误入藕花深处。争渡。争渡。惊起一滩鸥鹭。
""",
    )
)


def test_columns():
    """不是注、题目、空行的，都是一句：字数与平仄一样长。"""
    for text in PATTERNS.read_text(encoding="utf-8").splitlines():
        if text and text[0] not in "#《":
            found = re.fullmatch(COLUMNS, text)
            assert found, text
            assert sum(map(int, re.findall(r"\d+", found[1]))) == len(found[3]), text


def test_enough_patterns():
    """四十个以上，一名至多三体，末句都押韵。"""
    names = Counter(form.name for form in FORMS)
    assert len(names) >= 40
    assert max(names.values()) <= 3
    assert set(REQUIRED) <= set(names)
    for form in FORMS:
        assert form.lines[-1].letter, form.name


def test_one_name_one_pattern():
    """别名不与别的词牌重名。"""
    owners = {form.name: form.name for form in FORMS}
    for form in FORMS:
        for alias in form.aliases:
            assert owners.setdefault(alias, form.name) == form.name, alias


def test_rhyming_letters_come_back():
    """没有一个韵字母是孤零零的一句。"""
    for form in FORMS:
        letters = Counter(line.letter for line in form.lines if line.letter)
        assert [letter for letter, count in letters.items() if count == 1] == [], form.label


@pytest.mark.parametrize("name", KNOWN)
def test_known_works_fit(name):
    """名作的每句、每段的字数都合其中一体。"""
    work = sentences_of(KNOWN[name])
    assert any(all(fit(form, work)) for form in FORMS if form.name == name)


def test_repeated_lines_are_marked():
    """叠句用 =名字 记下：如梦令、调笑令转应体。"""
    marked = Counter(re.findall(r"\| =(\S+)$", PATTERNS.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(marked) == {"叠1", "叠2"}
    assert all(count % 2 == 0 for count in marked.values())


def test_fit_counts_by_sentence():
    """逗号只是停顿；断在谱的逗号处是「多断」；少一个字不合。"""
    form = next(form for form in FORMS if form.name == "忆江南" and "单调" in form.label)
    text = "江南好，风景旧曾谙。日出江花红胜火，春来江水绿如蓝。能不忆江南。"
    assert fit(form, sentences_of(text)) == (True, True, True)
    assert fit(form, sentences_of(text.replace("火，", "火。"))) == (False, True, True)
    assert fit(form, sentences_of(text.replace("，春来", "春来"))) == (True, False, True)
    assert fit(form, sentences_of(text.replace("江花", "花"))) == (False, False, False)
    assert cipai_fit.agreement(form, sentences_of(text))["rhymed"] == 3
