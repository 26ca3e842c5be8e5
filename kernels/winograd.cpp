// 3x3 convolutions of stride 1 and padding 1 by Winograd's F(4x4, 3x3): winograd.py says how.
//
// Images are [B, H, W, C] in memory (channels-last), float32 or bfloat16; factors and sums are
// float32. C and K are multiples of PANEL. A tile is 4x4 outputs, made of 6x6 inputs.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include <omp.h>

namespace {

// a product of ROWS tiles and PANEL output channels stays in registers
#if defined(__AVX512F__)
constexpr long LANES = 16, ROWS = 12;
#elif defined(__AVX2__)
constexpr long LANES = 8, ROWS = 6;
#else
constexpr long LANES = 4, ROWS = 6;
#endif
constexpr long PANEL = 2 * LANES;
// input channels that are summed up at a time: in parts a long sum loses less to rounding
constexpr long DEPTH = 256;
// tiles that are transformed, multiplied and transformed back before the next: few, lest they leave
// a core's cache, but more where the weights do not stay in the cache that cores share
constexpr long BLOCK = 12, LARGE_BLOCK = 48, LARGE_WEIGHTS = 1 << 22;  // floats
// floats between planes, lest all 36 fall into the same lines of a cache
constexpr long SKEW = 16;

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef float VecInMemory __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t HalfInMemory __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));

struct BFloat16 {
    uint16_t bits;
};

inline Vec load(const float* p) { return *(const VecInMemory*)p; }

inline Vec load(const BFloat16* p) {
    return (Vec)(__builtin_convertvector(*(const HalfInMemory*)p, Bits) << 16);
}

inline void store(float* p, Vec v) { *(VecInMemory*)p = v; }

// to the nearest, ties to even; NaN stays NaN
inline void store(BFloat16* p, Vec v) {
    Bits bits = (Bits)v;
    bits += 0x7FFF + ((bits >> 16) & 1);
    bits = v == v ? bits : Bits{} + 0x7FC00000;
    *(HalfInMemory*)p = __builtin_convertvector(bits >> 16, HalfInMemory);
}

constexpr float A = 0.707106781186547524f, B = 1.41421356237309505f;  // 1/sqrt(2), sqrt(2)

// B^T d
inline void transform_input(const Vec* d, Vec* v) {
    const Vec even_a = d[4] - 2 * d[2], odd_a = A * (d[3] - 2 * d[1]);
    const Vec even_b = d[4] - 0.5f * d[2], odd_b = B * (d[3] - 0.5f * d[1]);
    v[0] = d[0] + d[4] - 2.5f * d[2];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = d[1] + d[5] - 2.5f * d[3];
}

// G g
inline void transform_weight(const Vec* g, Vec* u) {
    const Vec even_a = (g[0] + 0.5f * g[2]) * (-1 / 1.5f), odd_a = g[1] * (-A / 1.5f);
    const Vec even_b = (g[0] + 2 * g[2]) * (1 / 6.f), odd_b = g[1] * (B / 6.f);
    u[0] = g[0];
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
}

// A^T m
inline void transform_output(const Vec* m, Vec* y) {
    const Vec even_a = m[1] + m[2], odd_a = A * (m[1] - m[2]);
    const Vec even_b = m[3] + m[4], odd_b = B * (m[3] - m[4]);
    y[0] = m[0] + even_a + even_b;
    y[1] = odd_a + odd_b;
    y[2] = 0.5f * even_a + 2 * even_b;
    y[3] = 0.5f * odd_a + 2 * odd_b + m[5];
}

// m [R, PANEL], or with `add` what it is more, = v [R, depth] @ u [depth, PANEL]; rows of v and m
// are so far apart
template <long R>
void multiply(const float* v, long v_step, const float* u, long depth, bool add, float* m,
              long m_step) {
    Vec sums[R][2] = {};
    for (long c = 0; c < depth; c++) {
        const Vec left = load(u + c * PANEL), right = load(u + c * PANEL + LANES);
#pragma GCC unroll 16
        for (long r = 0; r < R; r++) {
            sums[r][0] += v[r * v_step + c] * left;
            sums[r][1] += v[r * v_step + c] * right;
        }
    }
    for (long r = 0; r < R; r++)
        for (long half = 0; half < 2; half++) {
            float* place = m + r * m_step + half * LANES;
            store(place, add ? load(place) + sums[r][half] : sums[r][half]);
        }
}

// the same for 1 to R rows
template <long R>
void multiply(long rows, const float* v, long v_step, const float* u, long depth, bool add,
              float* m, long m_step) {
    if constexpr (R > 1) {
        if (rows < R) return multiply<R - 1>(rows, v, v_step, u, depth, add, m, m_step);
    }
    multiply<R>(v, v_step, u, depth, add, m, m_step);
}

// memory of a thread, for as long as it lives
float* scratch(size_t floats) {
    static thread_local float* memory = nullptr;
    static thread_local size_t size = 0;
    if (size < floats) {
        free(memory);
        size = (floats + 15) / 16 * 16;
        memory = (float*)aligned_alloc(64, size * sizeof(float));
        if (!memory) {
            size = 0;
            throw std::bad_alloc();
        }
    }
    return memory;
}

template <typename T>
struct Convolution {
    const T *x, *gate;  // [B, H, W, C]; where gate, if there is one, is not positive, x counts as 0
    const float* u;     // as `winograd_transform` writes it
    const float* bias;  // [K] or null
    const T* residual;  // [B, H, W, K] or null
    bool relu;
    T* y;  // [B, H, W, K]
    long H, W, C, K;
    long down, across;  // tiles of an image

    struct Place {
        long image, row, column;
    };

    Place place(long tile) const {
        return {tile / (down * across), tile / across % down * 4, tile % across * 4};
    }

    // v[36 planes][n, C] of the n tiles from `begin` on
    void gather(long begin, long n, float* v, long plane) const {
        for (long t = 0; t < n; t++) {
            const Place at = place(begin + t);
            const T* pixels = x + at.image * H * W * C;
            const T* open = gate ? gate + at.image * H * W * C : nullptr;
            for (long c = 0; c < C; c += LANES) {
                Vec columns[6][6];
                for (long q = 0; q < 6; q++) {
                    const long column = at.column + q - 1;
                    Vec d[6] = {};
                    for (long p = 0; p < 6; p++) {
                        const long row = at.row + p - 1;
                        if (row < 0 || row >= H || column < 0 || column >= W) continue;
                        const long i = (row * W + column) * C + c;
                        d[p] = load(pixels + i);
                        if (gate) d[p] = load(open + i) > 0 ? d[p] : Vec{};
                    }
                    transform_input(d, columns[q]);
                }
                for (long p = 0; p < 6; p++) {
                    Vec d[6], transformed[6];
                    for (long q = 0; q < 6; q++) d[q] = columns[q][p];
                    transform_input(d, transformed);
                    for (long q = 0; q < 6; q++)
                        store(v + (p * 6 + q) * plane + t * C + c, transformed[q]);
                }
            }
        }
    }

    // m[36 planes][n, k1 - k0] back into y
    void scatter(long begin, long n, const float* m, long plane, long k0, long k1) const {
        const long step = k1 - k0;
        for (long t = 0; t < n; t++) {
            const Place at = place(begin + t);
            for (long k = k0; k < k1; k += LANES) {
                Vec columns[6][4];
                for (long q = 0; q < 6; q++) {
                    Vec d[6];
                    for (long p = 0; p < 6; p++)
                        d[p] = load(m + (p * 6 + q) * plane + t * step + k - k0);
                    transform_output(d, columns[q]);
                }
                const Vec shift = bias ? load(bias + k) : Vec{};
                for (long p = 0; p < std::min(4L, H - at.row); p++) {
                    Vec d[6], out[4];
                    for (long q = 0; q < 6; q++) d[q] = columns[q][p];
                    transform_output(d, out);
                    for (long q = 0; q < std::min(4L, W - at.column); q++) {
                        const long i =
                            ((at.image * H + at.row + p) * W + at.column + q) * K + k;
                        Vec value = out[q] + shift;
                        if (residual) value += load(residual + i);
                        if (relu) value = value < 0 ? Vec{} : value;  // NaN stays NaN
                        store(y + i, value);
                    }
                }
            }
        }
    }

    // tiles begin .. begin + n, output channels k0 .. k1
    void run(long begin, long n, long k0, long k1) const {
        const long v_plane = n * C + SKEW, m_plane = n * (k1 - k0) + SKEW;
        float* m = scratch(36 * (v_plane + m_plane));
        float* v = m + 36 * m_plane;
        gather(begin, n, v, v_plane);
        for (long plane = 0; plane < 36; plane++)
            for (long k = k0; k < k1; k += PANEL)
                for (long c = 0; c < C; c += DEPTH)
                    for (long t = 0; t < n; t += ROWS)
                        multiply<ROWS>(std::min(ROWS, n - t), v + plane * v_plane + t * C + c, C,
                                       u + (plane * K + k) * C + c * PANEL, std::min(DEPTH, C - c),
                                       c > 0, m + plane * m_plane + t * (k1 - k0) + k - k0,
                                       k1 - k0);
        scatter(begin, n, m, m_plane, k0, k1);
    }
};

template <typename T>
void convolve(const void* x, const void* gate, const float* u, const float* bias,
              const void* residual, bool relu, void* y, long images, long H, long W, long C,
              long K) {
    const long down = (H + 3) / 4, across = (W + 3) / 4, tiles = images * down * across;
    const Convolution<T> convolution{(const T*)x, (const T*)gate, u, bias, (const T*)residual,
                                     relu,        (T*)y,          H, W,    C,
                                     K,           down,           across};
    const long threads = omp_get_max_threads();
    if (tiles <= LARGE_BLOCK) {
        // few tiles: each thread has all of them and reads its share of the weights alone
        const long panels = K / PANEL, parts = std::min(threads, panels);
#pragma omp parallel for schedule(static)
        for (long part = 0; part < parts; part++)
            convolution.run(0, tiles, panels * part / parts * PANEL,
                            panels * (part + 1) / parts * PANEL);
        return;
    }
    const long block_size = 36 * C * K > LARGE_WEIGHTS ? LARGE_BLOCK : BLOCK;
    const long blocks = (tiles + block_size * threads - 1) / (block_size * threads) * threads;
#pragma omp parallel for schedule(static)
    for (long block = 0; block < blocks; block++) {
        const long begin = tiles * block / blocks, end = tiles * (block + 1) / blocks;
        if (begin < end) convolution.run(begin, end - begin, 0, K);
    }
}

}  // namespace

extern "C" {

// what C and K must be multiples of
long winograd_panel() { return PANEL; }

// u [36, K / PANEL, C, PANEL] of w [K, 3, 3, C] in memory. gradient: of the convolution that takes
// the gradient back to the images of one with w [C, 3, 3, K].
void winograd_transform(const float* w, float* u, long K, long C, int gradient) {
#pragma omp parallel for collapse(2) schedule(static)
    for (long panel = 0; panel < K / PANEL; panel++)
        for (long c0 = 0; c0 < C; c0 += LANES) {
            const long k0 = panel * PANEL;
            float block[9][LANES][PANEL];  // transposed in a cache
            for (long k = 0; k < PANEL && !gradient; k++)
                for (long r = 0; r < 9; r++)
                    for (long c = 0; c < LANES; c++)
                        block[r][c][k] = w[((k0 + k) * 9 + r) * C + c0 + c];
            for (long c = 0; c < LANES; c++)
                for (long k = 0; k < PANEL; k += LANES) {
                    Vec columns[3][6];
                    for (long q = 0; q < 3; q++) {
                        Vec g[3];
                        for (long p = 0; p < 3; p++) {
                            const long r = p * 3 + q;
                            g[p] = load(gradient ? w + ((c0 + c) * 9 + 8 - r) * K + k0 + k
                                                 : &block[r][c][k]);
                        }
                        transform_weight(g, columns[q]);
                    }
                    for (long p = 0; p < 6; p++) {
                        const Vec g[3] = {columns[0][p], columns[1][p], columns[2][p]};
                        Vec transformed[6];
                        transform_weight(g, transformed);
                        for (long q = 0; q < 6; q++) {
                            const long row = ((p * 6 + q) * (K / PANEL) + panel) * C + c0 + c;
                            store(u + row * PANEL + k, transformed[q]);
                        }
                    }
                }
        }
}

// y = relu(conv(x where gate > 0, w) + bias + residual), as far as there are gate, bias, residual
// and relu; half: images are bfloat16
void winograd_convolve(const void* x, const void* gate, const float* u, const float* bias,
                       const void* residual, int relu, void* y, long images, long H, long W,
                       long C, long K, int half) {
    (half ? convolve<BFloat16> : convolve<float>)(x, gate, u, bias, residual, relu, y, images, H, W,
                                                  C, K);
}
}
