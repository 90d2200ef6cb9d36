// 解码的一步：各首接下来的一个（或几个）词元 → logits，写进 KV 缓存。与 model.py 是同一个网络，一次调用走完。
//
// 逐个词元写歌时，时间几乎全花在把权重从内存读一遍上，所以这里只做一件事：让每个线程不停地顺着读。
// 权重按 (输出, 输入) 一行接一行，点积由编译器向量化。C++20，不用别的库；由 decode.py 编译、载入、核对。

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;  // 一个向量寄存器里几个 float
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

// ---------------------------------------------------------------------------
// 与 decode.py 里的 ctypes.Structure 一一对应
// ---------------------------------------------------------------------------

enum Kind : int32_t { FP32, BF16, FP16, INT8 };

struct Matrix {
    const void* weight;     // (outputs, inputs)，类型由 Kind 定
    const float* scale;     // int8：(outputs,)
    const int32_t* totals;  // int8：(outputs,) 每行权重之和
    const float* bias;      // (outputs,)；没有是空的
    int64_t outputs, inputs;
};

struct Norm {
    const float *weight, *bias;
};

struct Layer {
    Norm norm_1;
    Matrix qkv, proj;
    Norm norm_2;
    Matrix fc, out;
};

struct Model {
    int32_t kind, layers, heads, width, vocabulary;
    float epsilon;
    const float* embedding;  // (V, C)
    const Layer* layer;
    Norm norm;
    Matrix head;
};

struct Cache {
    float* entries;          // (L, 2, B, H, capacity, D)
    const float *cos, *sin;  // (capacity, D)，前一半的正弦已取负
    int64_t songs, capacity, length, count;  // 已有 length 个位置，每首接上 count 个
};

// ---------------------------------------------------------------------------
// 点积：一行权重与一行激活
// ---------------------------------------------------------------------------

template <class T>
static inline T load(const void* from) {  // 不要求对齐
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

static inline Floats widen(const float* w) { return load<Floats>(w); }

static inline Floats widen(const uint16_t* w) {  // bf16 就是 float 的前一半
    return (Floats)(__builtin_convertvector(load<Halves>(w), Words) << 16);
}

static inline float widen_one(float w) { return w; }

static inline float widen_one(uint16_t w) {
    const uint32_t bits = uint32_t(w) << 16;
    return load<float>(&bits);
}

#if defined(__F16C__) || defined(__AVX512F__)  // 编译器不会自己把 _Float16 的转换向量化，只有这里用指令的名字
#define HAS_FP16 1
static inline Floats widen(const _Float16* w) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(load<__m256i>(w));
#else
    return (Floats)_mm256_cvtph_ps(load<__m128i>(w));
#endif
}
static inline float widen_one(_Float16 w) { return w; }
#elif defined(__aarch64__)
#define HAS_FP16 1
typedef _Float16 Float16s __attribute__((vector_size(2 * LANES)));
static inline Floats widen(const _Float16* w) { return __builtin_convertvector(load<Float16s>(w), Floats); }
static inline float widen_one(_Float16 w) { return w; }
#else
#define HAS_FP16 0
#endif

// 一行权重与 R 行激活（各隔 stride 个数）：权重只读一次。累加器分两组，乘加的延迟不挡着读。
template <int R, class W>
static void dot(const W* w, const float* x, int64_t stride, int64_t count, float* sums) {
    Floats a[R] = {}, b[R] = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        for (size_t byte = 0; byte < 2 * LANES * sizeof(W); byte += 64)  // 硬件的预取到页边就停
            __builtin_prefetch((const char*)(w + i) + 512 + byte);
        const Floats first = widen(w + i), second = widen(w + i + LANES);
        for (int r = 0; r < R; r++) {
            a[r] += first * load<Floats>(x + r * stride + i);
            b[r] += second * load<Floats>(x + r * stride + i + LANES);
        }
    }
    for (int r = 0; r < R; r++) {
        const Floats both = a[r] + b[r];
        sums[r] = 0;
        for (int lane = 0; lane < LANES; lane++) sums[r] += both[lane];
        for (int64_t k = i; k < count; k++) sums[r] += widen_one(w[k]) * x[r * stride + k];
    }
}

static int32_t dot(const int8_t* w, const uint8_t* x, int64_t count) {  // 有 VNNI 时编译成 vpdpbusd
    int32_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum += int32_t(w[i]) * int32_t(x[i]);
    return sum;
}

template <class W>
static void dot_rows(const W* w, const float* x, int64_t rows, int64_t stride, int64_t count, float* sums) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) dot<4>(w, x + row * stride, stride, count, sums + row);
    for (; row + 2 <= rows; row += 2) dot<2>(w, x + row * stride, stride, count, sums + row);
    for (; row < rows; row++) dot<1>(w, x + row * stride, stride, count, sums + row);
}

// ---------------------------------------------------------------------------
// 逐元素的函数
// ---------------------------------------------------------------------------

// e 的 x 次方，相对误差约 2e-7；写成可以向量化的样子（Cephes 的 expf）。nan 仍是 nan。
static inline float exponential(float x) {
    const float y = std::min(88.0f, std::max(-87.0f, x));  // 这样写，nan 也落在范围里
    const float n = std::floor(y * 1.44269504f + 0.5f);
    const float r = y - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x != x ? x : (p * r * r + r + 1.0f) * power;
}

// 精确的 GELU：x·Φ(x)；erf 用 Abramowitz 与 Stegun 7.1.26，绝对误差不过 1.5e-7。
static inline float gelu(float x) {
    const float z = std::fabs(x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
    const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    const float tail = 0.5f * p * exponential(-z * z);  // 1 − Φ(|x|)
    return x * (x >= 0 ? 1.0f - tail : tail);
}

static void normalise(const float* x, const Norm& norm, float epsilon, int64_t count, float* y) {
    float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < count; i++) mean += x[i];
    mean /= count;
#pragma omp simd reduction(+ : variance)
    for (int64_t i = 0; i < count; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / std::sqrt(variance / count + epsilon);
    for (int64_t i = 0; i < count; i++) y[i] = (x[i] - mean) * scale * norm.weight[i] + norm.bias[i];
}

// 一行激活 → 0…255，零在 128；返回刻度。nan 使刻度也是 nan。
static float quantise(const float* x, int64_t count, uint8_t* y) {
    float largest = 0, check = 0;
#pragma omp simd reduction(max : largest) reduction(+ : check)
    for (int64_t i = 0; i < count; i++) {
        largest = std::max(largest, std::fabs(x[i]));
        check += x[i] * 0.0f;
    }
    largest = std::max(largest, 1e-12f);
    const float inverse = 127.0f / largest;
    for (int64_t i = 0; i < count; i++) y[i] = uint8_t(int32_t(std::min(255.0f, std::max(0.0f, x[i] * inverse + 128.5f))));
    return largest / 127.0f + check;
}

// ---------------------------------------------------------------------------
// 线程：每个阶段的块按线程分成连着的几段，先顺着做自己的一段（内存读得最快），做完帮别人，再等还在别人手上的
// ---------------------------------------------------------------------------

static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int MOST_ROWS = 8;  // decode.py 里的同一个数
constexpr int SPINS = 2000;  // 等这么多次（约几十微秒）还没好就睡：别的程序占着核时，空转会把它挤得更慢

static void wait_until(std::atomic<int32_t>& value, int32_t wanted) {
    for (int spin = 0; spin < SPINS; spin++) {
        if (value.load(std::memory_order_acquire) == wanted) return;
        relax();
    }
    for (int32_t now; (now = value.load(std::memory_order_acquire)) != wanted;) value.wait(now);
}

struct alignas(64) Counter {  // 各占一个缓存行
    std::atomic<int32_t> value{0};
};

class Decoder {
  public:
    Decoder(const Model* model, int threads) : model(*model), threads(threads), counters((5 * model->layers + 1) * (threads + 1)) {
        for (int number = 1; number < threads; number++) workers.emplace_back([this, number] { work(number); });
    }

    ~Decoder() {
        leaving = true;
        round.fetch_add(2);
        round.notify_all();
        for (std::thread& worker : workers) worker.join();
    }

    void step(Cache& given, const int64_t* given_tokens, float* given_logits) {
        cache = given, tokens = given_tokens, logits = given_logits;
        rows = cache.songs * cache.count;
        const int64_t size = rows * model.width;
        x.resize(size), qkv.resize(3 * size), y.resize(size), wide.resize(4 * size);
        for (int64_t row = 0; row < rows; row++)
            std::copy_n(model.embedding + tokens[row] * model.width, model.width, &x[row * model.width]);
        for (Counter& counter : counters) counter.value.store(0, std::memory_order_relaxed);
        round.fetch_add(1);  // 奇数：开着
        round.notify_all();
        run(0);
        round.fetch_add(1);  // 偶数：关了；等还在里面的出来，才能动下一步的数
        wait_until(inside, 0);
    }

  private:
    Model model;
    int threads;
    Cache cache;
    int64_t rows;  // 一共几个词元，(首, 位置)
    const int64_t* tokens;
    float* logits;
    std::vector<float> x, qkv, y, wide;  // 各行的：残差 C、查询键值 3C、注意力 C、前馈 4C
    std::vector<Counter> counters;  // 每个阶段：做完了几块，各线程的一段里取到第几块
    std::vector<std::thread> workers;
    std::atomic<int32_t> round{0}, inside{0};
    std::atomic<bool> leaving{false};

    struct Scratch {  // 每个线程自己的
        int thread;
        std::vector<float> rows, scores;
        std::vector<uint8_t> bytes;
        std::vector<float> scales;
    };

    void work(int thread) {
        for (int32_t seen = 0; !leaving;) {
            for (int spin = 0; spin < SPINS && round == seen; spin++) relax();
            round.wait(seen);
            inside.fetch_add(1);
            seen = round;
            if (seen % 2 && !leaving) run(thread);
            inside.fetch_sub(1);
            inside.notify_all();
        }
    }

    template <class Part>
    void phase(int number, int thread, int64_t total, int64_t chunk, Part part) {
        Counter* own = &counters[number * (threads + 1)];
        std::atomic<int32_t>& done = (own++)->value;
        const int64_t chunks = (total + chunk - 1) / chunk;
        for (int turn = 0; turn < threads; turn++) {
            const int whose = (thread + turn) % threads;
            const int64_t first = chunks * whose / threads, last = chunks * (whose + 1) / threads;
            for (int64_t place; (place = first + own[whose].value.fetch_add(1, std::memory_order_relaxed)) < last;) {
                part(place * chunk, std::min(total, (place + 1) * chunk));
                if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == chunks) done.notify_all();
            }
        }
        wait_until(done, int32_t(chunks));
    }

    void run(int thread) {
        thread_local Scratch scratch;
        scratch.thread = thread;
        const int64_t width = model.width;
        int number = 0;
        for (int index = 0; index < model.layers; index++) {
            const Layer& layer = model.layer[index];
            multiply(number++, layer.qkv, &layer.norm_1, x.data(), scratch,
                     [&](int64_t row, int64_t o, float v) { qkv[row * 3 * width + o] = v; });
            phase(number++, thread, cache.songs * model.heads, 1, [&](int64_t first, int64_t) {
                for (int64_t place = 0; place < cache.count; place++)
                    attend(index, first / model.heads, first % model.heads, place, scratch);
            });
            multiply(number++, layer.proj, nullptr, y.data(), scratch,
                     [&](int64_t row, int64_t o, float v) { x[row * width + o] += v; });
            multiply(number++, layer.fc, &layer.norm_2, x.data(), scratch,
                     [&](int64_t row, int64_t o, float v) { wide[row * 4 * width + o] = gelu(v); });
            multiply(number++, layer.out, nullptr, wide.data(), scratch,
                     [&](int64_t row, int64_t o, float v) { x[row * width + o] += v; });
        }
        multiply(number, model.head, &model.norm, x.data(), scratch,
                 [&](int64_t row, int64_t o, float v) { logits[row * model.vocabulary + o] = v; });
    }

    // 矩阵乘各行（先归一，如果给了 norm）；每个结果交给 store(行, 第几个输出, 值)。
    template <class Store>
    void multiply(int number, const Matrix& matrix, const Norm* norm, const float* input, Scratch& scratch, Store store) {
        const int64_t n = matrix.inputs, chunk = std::max<int64_t>(8, 65536 / (n * bytes()));  // 一块约 64 KB
        bool ready = false;
        phase(number, scratch.thread, matrix.outputs, chunk, [&](int64_t first, int64_t last) {
            if (!ready) ready = prepare(norm, input, n, scratch);  // 每个线程各算一遍：比等一个线程算快
            const float* given = norm ? scratch.rows.data() : input;
            float sums[MOST_ROWS];
            for (int64_t o = first; o < last; o++) {
                times(matrix, o, given, scratch, sums);
                for (int64_t row = 0; row < rows; row++)
                    store(row, o, matrix.bias ? sums[row] + matrix.bias[o] : sums[row]);
            }
        });
    }

    int bytes() const { return model.kind == FP32 ? 4 : model.kind == INT8 ? 1 : 2; }

    bool prepare(const Norm* norm, const float* input, int64_t n, Scratch& scratch) {
        if (norm) {
            scratch.rows.resize(rows * n);
            for (int64_t row = 0; row < rows; row++)
                normalise(input + row * n, *norm, model.epsilon, n, &scratch.rows[row * n]);
            input = scratch.rows.data();
        }
        if (model.kind == INT8) {
            scratch.bytes.resize(rows * n), scratch.scales.resize(rows);
            for (int64_t row = 0; row < rows; row++)
                scratch.scales[row] = quantise(input + row * n, n, &scratch.bytes[row * n]);
        }
        return true;
    }

    // 第 o 个输出，各行的。
    void times(const Matrix& matrix, int64_t o, const float* x, const Scratch& scratch, float* sums) const {
        const int64_t n = matrix.inputs, at = o * n;
        switch (model.kind) {
            case FP32: return dot_rows((const float*)matrix.weight + at, x, rows, n, n, sums);
            case BF16: return dot_rows((const uint16_t*)matrix.weight + at, x, rows, n, n, sums);
#if HAS_FP16
            case FP16: return dot_rows((const _Float16*)matrix.weight + at, x, rows, n, n, sums);
#endif
            default:
                for (int64_t row = 0; row < rows; row++) {
                    const int32_t sum = dot((const int8_t*)matrix.weight + at, &scratch.bytes[row * n], n);
                    sums[row] = float(sum - 128 * matrix.totals[o]) * matrix.scale[o] * scratch.scales[row];
                }
        }
    }

    // 一首的一个头、接上的第 place 个词元：旋转、写进缓存，再对到它为止的全部位置做注意力。
    void attend(int layer, int64_t song, int64_t head, int64_t place, Scratch& scratch) {
        const int64_t width = model.width, size = width / model.heads, row = song * cache.count + place;
        const int64_t count = cache.length + place + 1, plane = cache.capacity * size, at = (count - 1) * size;
        float* keys = cache.entries + ((2 * layer * cache.songs + song) * model.heads + head) * plane;
        float* values = keys + cache.songs * model.heads * plane;
        const float* query = &qkv[row * 3 * width + head * size];
        scratch.rows.resize(std::max<size_t>(scratch.rows.size(), size));
        scratch.scores.resize(std::max<size_t>(scratch.scores.size(), count));
        float *rotated = scratch.rows.data(), *scores = scratch.scores.data();
        rotate(query, at, size, rotated);
        rotate(query + width, at, size, keys + at);
        std::copy_n(query + 2 * width, size, values + at);
        const float scale = 1.0f / std::sqrt(float(size));
        float largest = -INFINITY, total = 0;
        for (int64_t t = 0; t < count; t++) {
            dot<1>(keys + t * size, rotated, size, size, &scores[t]);
            scores[t] *= scale;
            largest = std::max(largest, scores[t]);
        }
#pragma omp simd reduction(+ : total)
        for (int64_t t = 0; t < count; t++) total += scores[t] = exponential(scores[t] - largest);
        float* result = &y[row * width + head * size];
        std::fill_n(result, size, 0.0f);
        for (int64_t t = 0; t < count; t++) {
            const float share = scores[t] / total;
            for (int64_t i = 0; i < size; i++) result[i] += share * values[t * size + i];
        }
    }

    void rotate(const float* from, int64_t at, int64_t size, float* to) const {
        const int64_t half = size / 2;
        for (int64_t i = 0; i < half; i++) {
            to[i] = from[i] * cache.cos[at + i] + from[i + half] * cache.sin[at + i];
            to[i + half] = from[i + half] * cache.cos[at + i + half] + from[i] * cache.sin[at + i + half];
        }
    }
};

extern "C" {
Decoder* decoder_new(const Model* model, int threads) { return new Decoder(model, threads); }
void decoder_free(Decoder* decoder) { delete decoder; }
void decoder_step(Decoder* decoder, Cache* cache, const int64_t* tokens, float* logits) {
    decoder->step(*cache, tokens, logits);
}
int decoder_has_fp16() { return HAS_FP16; }
}
