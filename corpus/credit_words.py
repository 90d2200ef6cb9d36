"""认制作信息用的词：名目、姓氏，和不会是名字的诗语。加词在这里加；名目用简体。"""

import re
import unicodedata

# 只收名目里会出现的繁体字
SIMPLER = str.maketrans(
    "並併來係個備傢傳僅儘兒內別刪剋創劃劇動務區協卽參吶員唸問單嗩嘆嚴囌國園圓圖團埰執報場塤墊墜墰壇壎壓壜妝學寀實寫專對導屆屬"
    "師帶幫庫廠廣彆彔後復戲掃採揚揮擊據擴攝敎數於時暫書會朮業樂標樣橋機檯權歎歡歸氣沒滾為烏無熱燈燒營爲爾獨獻現產産甦畫畵發盜"
    "盡監盤眾碼稱竪箇箏節簫簽籌籤粵糰紀約純級終絃組結絕統絲絶經綫網線編緻縮總繪繫繹罈罎羅羣習翫聯聲聽脩腦臺與舉蒐蓆蔘薩藝蘆蘇"
    "處號衆術衕衚裏補裝裡製複襯見視覺觀訂計訊記設許註詞試話該詳語誦說説調請論謝謠謡謹識譜譯讚豎貝財貢貼賓賞質贊軌軍軸載輔輪輯"
    "轉辦這週進遊運過選邊郵鈡鈴鈸銅銷鋁鋼錄錘録錶鍵鍾鎚鏡鐃鐘鐵鑼長門開間閤閩闆關陸隊雙雲電靈韓響項頓領頭頻題額類顧顫風颱馬騰"
    "體髮鬆鬍魚鳴鹹麥麪麫麯麴麵鼕齊齣龍韻軟絡佈饒覆織構練負責餘歷陣購諮詢傑撥彈樁檔廳衛薦詩飾館幀陳變從鏈鑒聖萊賽倉優齡暱匯",
    "并并来系个备家传仅尽儿内别删克创划剧动务区协即参呐员念问单唢叹严苏国园圆图团采执报场埙垫坠坛坛埙压坛妆学采实写专对导届属"
    "师带帮库厂广别录后复戏扫采扬挥击据扩摄教数于时暂书会术业乐标样桥机台权叹欢归气没滚为乌无热灯烧营为尔独献现产产苏画画发盗"
    "尽监盘众码称竖个筝节箫签筹签粤团纪约纯级终弦组结绝统丝绝经线网线编致缩总绘系绎坛坛罗群习玩联声听修脑台与举搜席参萨艺芦苏"
    "处号众术同胡里补装里制复衬见视觉观订计讯记设许注词试话该详语诵说说调请论谢谣谣谨识谱译赞竖贝财贡贴宾赏质赞轨军轴载辅轮辑"
    "转办这周进游运过选边邮钟铃钹铜销铝钢录锤录表键钟锤镜铙钟铁锣长门开间合闽板关陆队双云电灵韩响项顿领头频题额类顾颤风台马腾"
    "体发松胡鱼鸣咸麦面面曲曲面冬齐出龙韵软络布饶复织构练负责余历阵购咨询杰拨弹桩档厅卫荐诗饰馆帧陈变从链鉴圣莱赛仓优龄昵汇",
)

# 一见就是制作信息的名目
CERTAIN = (
    "写词 写曲 "
    "作词 作曲 填词 谱曲 编曲 词曲 曲词 词作 曲作 作编 编作 改编 译词 译配 配器 制作人 监制人 混音 缩混 混缩 分轨 "
    "母带 录音师 录音室 录音棚 录音工程 "
    "录音助理 录混 和声编写 弦乐编写 管乐编写 音频编辑 人声编辑 修音 贴唱 音乐总监 音乐制作 音乐监制 音乐编辑 "
    "音乐统筹 音乐发行 音乐出品 音乐版权 音乐营销 "
    "音乐推广 音乐企划 音乐设计 音乐行政 音乐顾问 音乐出版 词曲版权 录音版权 著作权 版权公司 版权管理 版权代理 "
    "版权支持 词曲代理 出品人 出品方 出品公司 "
    "联合出品 发行人 发行方 发行公司 唱片公司 唱片编号 发行日期 发行时间 经纪公司 艺人统筹 艺人经纪 艺人管理 "
    "制作统筹 制作总监 制作执行 执行制作 制作公司 "
    "制作团队 制作单位 统筹 企宣 宣发 企划 曲绘 调校 调教 调声 歌词编辑 歌词校对 歌词制作 歌词翻译 歌词来源 "
    "歌词提供 歌词贡献 原曲 原唱 翻唱 编舞 罗马音 "
    "混音师 声乐指导 配唱 伴奏制作 词曲唱 作曲家 作词家 编曲家 音频工程 音频制作 音频后期 声音设计 声音工程 "
    "声音后期 人声录音 乐器录音 弦乐录音 鼓录音 "
    "人声混音 立体声混音 人声制作 配唱制作 执行制作人 联合制作人 总制作人 弦乐编配 管乐编配 合唱编写 和声设计 "
    "和声编配 吉他编写 鼓编写 弦乐监制 人声监制 音乐人 "
    "音乐公司 音乐制作人 词版权 曲版权 发行单位 出版单位 制作发行 出版发行 联合发行 独家发行 数字发行 数位发行 "
    "实体发行 唱片发行 总发行 宣推 推广宣传 宣传推广 "
    "企划宣传 艺人推广 艺人经纪人 项目统筹 音乐项目 版权统筹 法务统筹 歌曲授权 歌词创作 歌词修订 歌词改编 "
    "粤语填词 国语填词 日文填词 英文填词"
).split()

# 也会唱到的
COMMON = (
    "剪接 配图 采访 口述 节奏 "
    "吹奏 弹唱 献唱 回唱 摄制 原著 授权 双吉他 低音 高音 中音 场地 道具 乐器租赁 品牌合作 经文 吼 清嗓 "
    "传唱 首唱 吟唱 重唱 梵唱 对唱 编腔 设计唱腔 播讲 评弹 改编词 分轨混音 乐器技师 助威 球迷合唱 "
    "微信 微博 抖音 抖音号 公众号 邮箱 联系方式 合作 网易云 团员 撰曲 头架 拍和 专案经理 公关宣传 行销企划 收音 "
    "田野录音 "
    "词 曲 编 唱 监 制 混 录 鼓 译 箫 笛 筝 埙 笙 阮 瑟 琴 歌 文 作 和 谱 制作 监制 录音 录制 和声 和音 合声 合音 "
    "演唱 演奏 歌手 艺人 歌者 "
    "歌名 歌曲 曲名 曲目 歌词 专辑 乐队 乐团 主唱 合唱 伴唱 独唱 领唱 齐唱 对唱 说唱 念白 旁白 独白 朗诵 配音 "
    "人声 歌唱 音乐 吉他 木吉他 电吉他 "
    "古典吉他 尼龙吉他 箱琴 贝斯 贝司 低音吉他 低音提琴 倍大提琴 鼓手 架子鼓 爵士鼓 鼓机 手鼓 大鼓 小鼓 军鼓 "
    "康加鼓 非洲鼓 打击乐 打击 三角铁 沙锤 铃鼓 "
    "木鱼 编钟 拍手 响指 键盘 键盘手 钢琴 电钢琴 风琴 管风琴 手风琴 口琴 合成器 采样 音效 音色 音序 弦乐 提琴 "
    "大提琴 小提琴 中提琴 首席 竖琴 二胡 京胡 "
    "板胡 高胡 中胡 革胡 马头琴 古筝 古琴 琵琶 柳琴 月琴 三弦 扬琴 中阮 大阮 阮咸 箜篌 笛子 竹笛 长笛 短笛 洞箫 "
    "尺八 葫芦丝 巴乌 唢呐 管子 陶笛 哨笛 "
    "风笛 口哨 萨克斯 萨克斯风 单簧管 双簧管 黑管 巴松 大管 圆号 法国号 小号 长号 大号 次中音 铜管 木管 管乐 "
    "管弦乐 民乐 国乐 冬不拉 热瓦普 都塔尔 呼麦 "
    "班苏里笛 西塔尔琴 曼陀林 尤克里里 班卓琴 班卓 出品 发行 出版 推广 宣传 宣推 营销 运营 渠道 策划 统筹 监督 "
    "后期 混响 封面 海报 美工 美术 视频 映像 "
    "字幕 绘画 画师 插画 题字 书法 排版 摄影 导演 编剧 主演 出演 剪辑 灯光 造型 妆发 场记 拍摄 动画 特效 文案 "
    "剧本 出处 本家 填写 翻译 校对 校正 "
    "中译 英译 中文 日文 英文 粤语 国语 版权 声明 鸣谢 感谢 特别鸣谢 特别感谢 赞助 协力 助理 厂牌 经纪 法务 "
    "法律顾问 财务 行政 商务 商务合作 媒体 媒介 "
    "客服 工作室 公司 社团 团队 单位 主办 承办 协办 指导 顾问 总监 总监制 总策划 总统筹 总编导 总导演 总顾问 "
    "项目经理 项目总监 项目统筹 产品经理 语言 "
    "流派 版本 标签 时长 曲风 风格 类型 音质 节拍 速度 调式 年份 日期 伴奏 消音 采编 编程 程序 电脑编程 编写 改词 "
    "原词 原作 作者 伴舞 舞蹈 指挥 钢伴 "
    "领奏 独奏 合奏 演出 友情出演 童声 男声 女声 音响 调音 扩声 编导 设计 平面 平面设计 封面设计 视觉 视觉设计 "
    "美术设计 词作者 曲作者 唱作 演绎 名称 "
    "主题 来源 出自 轮指 试唱 监听 组员 成员 乐手 配乐 作词曲 字 图 绘 剪 调 策 宣 美 录混后期 戏腔 锣鼓 司鼓 "
    "司琴 对白 伴音 和唱 帮唱 垫音 原声 "
    "扒谱 扒带 采集 记录 录入 制谱 传谱 歌姬 声库 音源 调参 曲绘 分镜 压制 时间轴 中文填词 词改编 曲改编 混音母带 "
    "总混 贝斯手 吉他手 小号手 主音吉他 "
    "节奏吉他 滑棒吉他 夏威夷吉他 原声吉他 民谣吉他 十二弦吉他 电贝斯 无品贝斯 电子鼓 箱鼓 卡洪鼓 邦戈鼓 定音鼓 "
    "颤音琴 马林巴 木琴 钟琴 钢片琴 八音盒 玩具琴 "
    "大键琴 羽管键琴 铝板琴 低音管 英国管 低音单簧管 中音萨克斯 次中音萨克斯 上低音号 小军鼓 铙钹 梆子 快板 堂鼓 "
    "大锣 小锣 云锣 编磬 骨笛 新笛 梆笛 曲笛 "
    "大笛 胡琴 坠胡 四胡 椰胡 秦琴 三味线 伽倻琴 西塔琴 手碟 空灵鼓 拇指琴 卡林巴 迪吉里杜管 口弦 专业支持 "
    "技术支持 场地 场地支持 器材 设备 服装 化妆 "
    "道具 舞美 舞台监督 现场导演 票务 周边 社长 副社长 特约 特邀 嘉宾 友情支持 友情协力 友情客串 ギター ベース "
    "ドラム ドラムス ボーカル ミックス "
    "マスタリング イラスト ピアノ キーボード コーラス アルバム アレンジ プロデュース 作詞 唄 うた 絵 動画 調声 "
    "ストリングス"
).split()

# 只作修饰，单独不成名目
MODIFIERS = (
    "时间 地点 日期 品牌 租赁 "
    "所属 独立 "
    "青衣 花旦 老生 蒙古语 藏语 维语 沪语 客语 族语 潮语 闽语 部落 球迷 服饰 服装 技师 "
    "师 人 员 者 室 棚 手 方 部 组 团 版 级 总 副 主 原 新 全 第 一 二 三 四 五 六 七 八 九 十 首席 联合 联席 "
    "执行 现场 助理 工程师 工程 "
    "助手 设计 编辑 剪辑 处理 后期 协力 支持 指导 顾问 经理 主管 管理 专员 单位 公司 数字 数位 线上 全案 独家 "
    "中国 全球 海外 大陆 内地 港台 中文 "
    "国语 粤语 英文 日文 韩文 闽南语 原版 原声 古典 民谣 电 木 低音 高音 中音 男 女 儿童 节奏 主音 前奏 间奏 尾奏 "
    "及 与 和 兼 并 背景 附加 额外 "
    "其它 其他 乐器 制作 录制 录音 发行 出品 策划 企划 总监 动画 全景声 杜比 立体声 空间音频 艺人 宣传 商务 项目 "
    "统筹 世界观 文字 歌曲 单曲 专辑 音乐 "
    "电视剧 电影 游戏 影视 插曲 题曲 片头 片尾 主题曲 广告 授权 所有 代理 权 数据 信息 名单 表 名 室内 乐团 小组 "
    "乐队 合唱团 童声 声部 编写 演奏 "
    "演唱 编配 编排 整理 收集 收录 搜集 采集 提供 上传 制谱 记谱 校园 词曲 改编 合成 视觉 本 该 此 之 的 位 号 届 "
    "场 轮 遍 段 改 加 特别 特约 "
    "特邀 友情 鸣谢 技术 赞助 弦乐 管乐 人声 声音 鼓组 鼓 吉他 键盘 钢琴 词 曲 编 图 文 字 声 音 音频 视频 部分 "
    "以上 全部 及其 共同 合作 团员 "
    "成员"
).split()

ENGLISH_CERTAIN = (
    "lyric lyrics lyricist lyricists composer composers composed composition composing "
    "arranger arrangers arranged arrangement arrangements producer producers produced "
    "production prod mixing mixed mixer mastering mastered recorded recording engineer "
    "engineers engineered engineering publisher publishers publishing published "
    "subpublished distributed distribution programmed programming isrc op sp cv bv bvox "
    "orchestrated orchestration illust author soundtrack a&r songwriter songwriters "
    "songwriting mixes masters conducted coproducer beatmaker topline toplined "
    "orchestrator orchestrators copyist vocoder remixed remix"
).split()

ENGLISH_COMMON = (
    "arrange compose "
    "arr adm admin staff credits "
    "book orchestrations percs translations remaster remastered transcription transcribed narrator narration "
    "email e-mail wechat weibo instagram ig qq uid bilibili youtube spotify sampler system pa toy "
    "maker french hand hands co sub written words word music vocal vocals vocalist singer "
    "song artist artists performer performed performance title album label studio studios "
    "guitar guitars bass drum drums percussion piano keyboard keyboards keys synth synths "
    "synthesizer synthesizers organ rhodes string strings violin violins viola cello "
    "contrabass double horn horns trumpet trombone sax saxophone flute oboe clarinet "
    "bassoon harp harmonica ukulele banjo mandolin accordion erhu pipa guzheng dizi xiao "
    "guqin ruan suona sheng bansuri sitar choir chorus orchestra band beat beats beatmaker "
    "loop loops sample samples scratch turntable dj mc rap hook verse whistle claps clap "
    "cover design designer artwork art illustration illustrator photo photographer "
    "photography video movie mv pv director tuning harmony harmonies backing background "
    "lead additional add assistant assisted executive associate chief mix master mixdown "
    "record edit edited editing editor sound effects sfx fx vfx midi bpm key genre "
    "language version date year release released digital promotion marketing management "
    "copyright copyrights acoustic electric electronic nylon rhythm solo all other "
    "instruments instrument section localization translation translated translator "
    "original vocaloid cv feat featuring feature intro outro adlib adlibs ad libs overdubs "
    "session supervisor supervised coordinator coordination manager project special thanks "
    "mastered storyboard animation animator dance choreography chinese english japanese "
    "cantonese mandarin korean gtr gtrs bvs vox perc kbd wurlitzer hammond moog theremin "
    "glockenspiel vibraphone marimba timpani celesta celli cellos violas basses tenor alto "
    "soprano baritone steel pedal slide lap upright fretless tambourine shaker congas "
    "bongos cajon djembe cymbals triangle bells chimes snaps stomps whistling humming "
    "noise noises ambient field recordings found sounds tape tapes machine machines analog "
    "modular turntables cuts scratches stylist styling hair makeup wardrobe location "
    "production layout typography lettering calligraphy gfx colorist colourist grading "
    "gaffer camera operator dop dp ae visual visuals visualizer subtitle subtitles tempo "
    "capo dolby atmos spatial immersive stereo live concert tour crew staff technician "
    "technicians tech monitor foh public relations pr a&r legal affairs finance business "
    "international distributor licensing licensed rights owner administered courtesy "
    "b-side demo bgm chops stems beat-maker hunter choreographer dancers actor actors "
    "actress cast starring script screenplay screenwriter planner planning presents "
    "presented sponsor sponsors sponsored"
).split()

ENGLISH_MODIFIERS = "by at & and / of the for with in an a de on to from as st nd rd th 1st 2nd 3rd no".split()

# 名字开头常见的字：姓，和某、阿、天干
SURNAMES = frozenset(
    "褚莊庄楚洛凌司欧闻曲骆霍虞甄靳芮储封焦巫祁闵盛童佟舒屈项祝蓝季娄宗郁杭洪包左吉荣聂晏查鲁宁仇栾冉郎桂蒲卞敖瞿阚尚倪滕殷岳臧费廉岑裘玖"
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖萧田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范"
    "金石廖贾夏韦付傅方白邹孟熊秦邱江尹薛闫阎段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔汤葛伍简施卓柯阮翁纪游温庄詹涂邢樊齐易"
    "乔康庞颜裴路柴关单申某阿甲乙丙戊己庚辛壬癸張劉陳楊黃趙吳孫馬羅鄭許韓馮鄧蕭蔣葉蘇呂盧薑鐘譚陸範賈韋鄒閻龍賀顧龔萬錢嚴湯"
)

# 两个字而不会是名字的
POETIC = frozenset(
    (
        "世界 人間 人间 今天 从前 光阴 光陰 再見 再见 冬天 勿回 勿念 命运 命運 回忆 回憶 夏天 夜晚 夢想 大海 太阳 太陽 "
        "孤独 孤獨 寂寞 岁月 已迟 已遲 幸福 彩虹 影子 從前 心跳 快乐 快樂 愛情 故乡 故鄉 无题 日子 时代 时候 时光 时间 "
        "明天 星星 星空 春天 春風 春风 昨天 時光 時間 晚風 晚风 月亮 月光 梦想 歲月 永远 永遠 江南 江湖 沉默 流年 流星 "
        "海浪 清晨 温柔 溫柔 灯火 無題 燈火 爱情 生活 白云 白雲 眼泪 眼淚 秋天 秋风 空白 自由 落叶 落葉 远方 遠方 随便 "
        "隨便 雨后 雨後 雨水 雪花 青春 黃昏 黄昏 "
    ).split()
)


def simpler(text: str) -> str:
    """名目用字的繁体 → 简体、全角字母 → 半角，一字对一字。"""
    if _WIDE.search(text):
        text = _WIDE.sub(lambda wide: unicodedata.normalize("NFKC", wide[0]), text)
    return text.translate(SIMPLER)


_WIDE = re.compile("[\uff21-\uff3a\uff41-\uff5a\uff10-\uff19\uff1d]+")
