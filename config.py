"""全部超参数：改这里的常量，或在命令行用同名小写参数覆盖，例如 `python train.py --batch_size 16`。

次序：常量 < 预设（PRESET）< 命令行。每个常量右侧的一行说明就是 `--help` 的内容。
这里的相对路径从本仓库所在文件夹算起，命令行里的相对路径从当前文件夹算起。
"""

from typing import Any

# ---- 预设 ----
PRESET = "auto"  # auto：有 CUDA 显卡用 gpu，苹果芯片用 mac，都没有用 cpu；gpu 是下面的常量，别的见末尾的 PRESETS

# ---- 数据与分词 ----
LYRICS_DIR = "ChineseLyrics"  # 歌词文件夹（*.json、*.csv、*.txt、*.lrc 等，见 ChineseLyrics/README.md）
LYRICS_WEIGHTS = None  # 每轮里各个子文件夹的歌几遍，如 "古典=0.2,现代=3"；没有写到的一遍
CACHE_DIR = "cache"  # 词元缓存文件夹
BPE_VOCAB_SIZE = 10000  # 词表大小（个）；语料太小时自动减小
BPE_MODEL_PREFIX = "chinese_lyrics_bpe"  # 分词模型文件名（不含 .model）
INSPECT = None  # 把每首歌照训练时的样子写进这个文件夹，旁边是去掉的行与略过的文件，然后结束，不训练
VAL_FRACTION = 0.05  # 留作验证的歌曲比例（按歌曲哈希划分）

# ---- 模型 ----
N_LAYERS = 12  # 层数
N_HEADS = 12  # 注意力头数
N_EMBED = 768  # 隐藏维度
MAX_SEQ_LEN = 1024  # 上下文长度（词元）
DROPOUT = 0.1  # 训练时的丢弃率
SEPARATE_SONGS = False  # 一个窗口里的几首歌互相看不见：学得更好，但用不了 Flash Attention

# ---- 训练 ----
TRAIN_ITERS = 2000  # 优化步数
FIT_TO_CORPUS = True  # 语料小得要反复学几十轮时，步数、批量、预热、评估间隔与正则随它调整；false 照常量
PATIENCE = 5  # 连续这么多次评估没有更好就停下；none 不提前停
BATCH_SIZE = 64  # 每个优化步的序列数
MICRO_BATCH_SIZE = None  # 一次前向的序列数，数学不变；none：随空闲的显存而定，没有显卡就整批一次
ACTIVATION_CHECKPOINTING = False  # 反传时重算各层，省下大半显存，约慢三成，数学不变
OPTIMIZER = "muon"  # muon：线性层的权重矩阵用 Muon，其余用 AdamW；adamw：全部用 AdamW
LEARNING_RATE = 3e-4  # AdamW 的最高学习率
MUON_LEARNING_RATE = 2e-3  # Muon 的最高学习率
MIN_LR = 3e-5  # 余弦退火的最低学习率；Muon 的按同样的倍数退火
WARMUP_ITERS = 200  # 线性预热步数
WEIGHT_DECAY = 0.1  # 权重衰减（只作用于线性层的权重矩阵）
AVERAGE = 0.05  # best.pt 是最近这么大一部分步数里权重的滑动平均；0 不平均
GRAD_CLIP = 1.0  # 梯度范数上限；0 表示不裁剪
USE_AMP = True  # 混合精度：bf16，硬件不支持时用 fp16 或 fp32
USE_COMPILE = True  # torch.compile 加速；不可用时自动退回
SEED = 1337  # 随机种子：初始化、数据次序、丢弃

# ---- 评估、日志与检查点 ----
EVAL_INTERVAL = 200  # 每多少步评估一次
EVAL_ITERS = 50  # 每次评估最多多少批验证数据
LOG_INTERVAL = 10  # 每多少步记一行日志
SAVE_INTERVAL = 200  # 每多少步保存 latest.pt
CHECKPOINT_DIR = "checkpoints"  # 检查点文件夹
RESUME = True  # 有 latest.pt 就接着训练；false：旧结果移入 archive-…/，从头开始
INIT_FROM = None  # 从这个检查点的权重与分词器开始微调（架构随它）；none 表示从头训练
TEACHER = None  # 老师的检查点，几个用逗号隔开：损失的一部分朝着它们的预测；none 不用
ALLOW_NEW_CORPUS = False  # 接着训练时允许语料与检查点不同（沿用检查点的分词器）
GENERATE_PROMPT = "今夜我"  # 评估时试写歌词的开头
GENERATE_TOKENS = 120  # 评估时试写的最多词元数
DEVICE = "auto"  # auto、cpu、cuda、cuda:1、mps
USE_SWANLAB = True  # 用 SwanLab 记录；未登录时自动转为本地离线记录
SWANLAB_PROJECT = "chinese-lyrics"  # SwanLab 项目名

PRESETS: dict[str, dict[str, Any]] = {
    "gpu": {},
    "mac": {
        "N_LAYERS": 6,
        "N_HEADS": 6,
        "N_EMBED": 384,
        "MAX_SEQ_LEN": 512,
        "SEPARATE_SONGS": True,
        "TRAIN_ITERS": 1000,
        "BATCH_SIZE": 16,
        "LEARNING_RATE": 6e-3,
        "MIN_LR": 6e-4,
        "WARMUP_ITERS": 100,
        "EVAL_INTERVAL": 100,
        "SAVE_INTERVAL": 100,
        "USE_COMPILE": False,
    },
    "cpu": {
        "N_LAYERS": 4,
        "N_HEADS": 4,
        "N_EMBED": 256,
        "MAX_SEQ_LEN": 256,
        "DROPOUT": 0.0,
        "SEPARATE_SONGS": True,
        "TRAIN_ITERS": 200,
        "BATCH_SIZE": 8,
        "LEARNING_RATE": 1.2e-2,  # 词嵌入要学得快（docs/recipe.md）；OPTIMIZER 换成 adamw 时改回 3e-3
        "MIN_LR": 1.2e-3,
        "WARMUP_ITERS": 50,
        "EVAL_INTERVAL": 50,
        "EVAL_ITERS": 20,
        "SAVE_INTERVAL": 50,
        "USE_COMPILE": False,
    },
}
