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

// A d
inline void transform_gradient(const Vec* d, Vec* e) {
    const Vec even_a = d[0] + 0.5f * d[2], odd_a = A * (d[1] + 0.5f * d[3]);
    const Vec even_b = d[0] + 2 * d[2], odd_b = B * (d[1] + 2 * d[3]);
    e[0] = d[0];
    e[1] = even_a + odd_a;
    e[2] = even_a - odd_a;
    e[3] = even_b + odd_b;
    e[4] = even_b - odd_b;
    e[5] = d[3];
}

// G^T s
inline void transform_weight_gradient(const Vec* s, Vec* g) {
    const Vec even_a = (s[1] + s[2]) * (-1 / 1.5f), even_b = (s[3] + s[4]) * (1 / 6.f);
    g[0] = s[0] + even_a + even_b;
    g[1] = (s[1] - s[2]) * (-A / 1.5f) + (s[3] - s[4]) * (B / 6.f);
    g[2] = 0.5f * even_a + 2 * even_b + s[5];
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

// A factor of a product: element (i, j) is at data[i * row + j * column].
struct Matrix {
    const float* data;
    long row, column;
};

// m [R, PANEL], or with `add` what it is more, = v [R, depth] @ u [depth, PANEL], whose rows are
// `u_step` apart as those of m are `m_step`
template <long R>
void multiply(Matrix v, const float* u, long u_step, long depth, bool add, float* m, long m_step) {
    Vec sums[R][2] = {};
    for (long c = 0; c < depth; c++) {
        const Vec left = load(u + c * u_step), right = load(u + c * u_step + LANES);
#pragma GCC unroll 16
        for (long r = 0; r < R; r++) {
            const float factor = v.data[r * v.row + c * v.column];
            sums[r][0] += factor * left;
            sums[r][1] += factor * right;
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
void multiply(long rows, Matrix v, const float* u, long u_step, long depth, bool add, float* m,
              long m_step) {
    if constexpr (R > 1) {
        if (rows < R) return multiply<R - 1>(rows, v, u, u_step, depth, add, m, m_step);
    }
    multiply<R>(v, u, u_step, depth, add, m, m_step);
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

// the tiles of images [B, H, W, channels]
struct Tiles {
    long H, W, down, across;

    Tiles(long height, long width)
        : H(height), W(width), down((height + 3) / 4), across((width + 3) / 4) {}

    struct Place {
        long image, row, column;
    };

    Place place(long tile) const {
        return {tile / (down * across), tile / across % down * 4, tile % across * 4};
    }
};

// v[36 planes][n, C]: B^T d B of the n tiles from `begin` on of x [B, H, W, C], which counts as 0
// where gate, if there is one, is not positive
template <typename T>
void gather(const Tiles& tiles, const T* x, const T* gate, long C, long begin, long n, float* v,
            long plane) {
    const long H = tiles.H, W = tiles.W;
    for (long t = 0; t < n; t++) {
        const auto at = tiles.place(begin + t);
        for (long c = 0; c < C; c += LANES) {
            Vec columns[6][6];
            for (long q = 0; q < 6; q++) {
                const long column = at.column + q - 1;
                Vec d[6] = {};
                for (long p = 0; p < 6; p++) {
                    const long row = at.row + p - 1;
                    if (row < 0 || row >= H || column < 0 || column >= W) continue;
                    const long i = ((at.image * H + row) * W + column) * C + c;
                    d[p] = load(x + i);
                    if (gate) d[p] = load(gate + i) > 0 ? d[p] : Vec{};
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

// e[36 planes][n, K]: A dy A^T of the n tiles from `begin` on of dy [B, H, W, K]
template <typename T>
void gather_gradient(const Tiles& tiles, const T* dy, long K, long begin, long n, float* e,
                     long plane) {
    const long H = tiles.H, W = tiles.W;
    for (long t = 0; t < n; t++) {
        const auto at = tiles.place(begin + t);
        for (long k = 0; k < K; k += LANES) {
            Vec columns[4][6];
            for (long q = 0; q < 4; q++) {
                Vec d[4] = {};
                for (long p = 0; p < std::min(4L, H - at.row) && at.column + q < W; p++)
                    d[p] = load(dy + ((at.image * H + at.row + p) * W + at.column + q) * K + k);
                transform_gradient(d, columns[q]);
            }
            for (long p = 0; p < 6; p++) {
                const Vec d[4] = {columns[0][p], columns[1][p], columns[2][p], columns[3][p]};
                Vec transformed[6];
                transform_gradient(d, transformed);
                for (long q = 0; q < 6; q++)
                    store(e + (p * 6 + q) * plane + t * K + k, transformed[q]);
            }
        }
    }
}

template <typename T>
struct Convolution {
    Tiles tiles;
    const T *x, *gate;  // [B, H, W, C]; where gate, if there is one, is not positive, x counts as 0
    const float* u;     // as `winograd_transform` writes it
    const float* bias;  // [K] or null
    const T* residual;  // [B, H, W, K] or null
    bool relu;
    T* y;  // [B, H, W, K]
    long C, K;

    // m[36 planes][n, k1 - k0] back into y
    void scatter(long begin, long n, const float* m, long plane, long k0, long k1) const {
        const long step = k1 - k0, H = tiles.H, W = tiles.W;
        for (long t = 0; t < n; t++) {
            const auto at = tiles.place(begin + t);
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
        gather(tiles, x, gate, C, begin, n, v, v_plane);
        for (long plane = 0; plane < 36; plane++)
            for (long k = k0; k < k1; k += PANEL)
                for (long c = 0; c < C; c += DEPTH)
                    for (long t = 0; t < n; t += ROWS)
                        multiply<ROWS>(std::min(ROWS, n - t),
                                       {v + plane * v_plane + t * C + c, C, 1},
                                       u + (plane * K + k) * C + c * PANEL, PANEL,
                                       std::min(DEPTH, C - c), c > 0,
                                       m + plane * m_plane + t * (k1 - k0) + k - k0, k1 - k0);
        scatter(begin, n, m, m_plane, k0, k1);
    }
};

template <typename T>
void convolve(const void* x, const void* gate, const float* u, const float* bias,
              const void* residual, bool relu, void* y, long images, long H, long W, long C,
              long K) {
    const Tiles all(H, W);
    const long tiles = images * all.down * all.across;
    const Convolution<T> convolution{all, (const T*)x, (const T*)gate, u, bias,
                                     (const T*)residual, relu, (T*)y, C, K};
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

// tiles that are summed up at a time: they fit the cache that cores share
long gradient_tiles(long C, long K) { return std::max(ROWS, (1L << 15) / (C + K)); }

// dw [K, 3, 3, C] of x [B, H, W, C] and dy [B, H, W, K]: G^T s G, where s [36, K, C] is
// sum_tiles (A dy A^T) * (B^T d B), summed up some tiles at a time in `memory`
template <typename T>
void weight_gradient(const T* x, const T* dy, float* s, float* memory, float* dw, long images,
                     const Tiles& tiles, long C, long K) {
    const long total = images * tiles.down * tiles.across, size = gradient_tiles(C, K);
    const long v_plane = size * C + SKEW, e_plane = size * K + SKEW;
    float *v = memory, *e = memory + 36 * v_plane;
#pragma omp parallel
    {
        for (long begin = 0; begin < total; begin += size) {
            const long n = std::min(size, total - begin);
            // a few tiles at a time, for every thread to have some
#pragma omp for schedule(static)
            for (long t = 0; t < n; t += 4) {
                const long few = std::min(4L, n - t);
                gather(tiles, x, (const T*)nullptr, C, begin + t, few, v + t * C, v_plane);
                gather_gradient(tiles, dy, K, begin + t, few, e + t * K, e_plane);
            }
#pragma omp for collapse(2) schedule(static)
            for (long plane = 0; plane < 36; plane++)
                for (long k = 0; k < K; k += ROWS)
                    for (long c = 0; c < C; c += PANEL)
                        multiply<ROWS>(std::min(ROWS, K - k), {e + plane * e_plane + k, 1, K},
                                       v + plane * v_plane + c, C, n, begin > 0,
                                       s + (plane * K + k) * C + c, C);
        }
#pragma omp for schedule(static)
        for (long k = 0; k < K; k++)
            for (long c = 0; c < C; c += LANES) {
                Vec columns[6][3];
                for (long q = 0; q < 6; q++) {
                    Vec d[6];
                    for (long p = 0; p < 6; p++) d[p] = load(s + ((p * 6 + q) * K + k) * C + c);
                    transform_weight_gradient(d, columns[q]);
                }
                for (long p = 0; p < 3; p++) {
                    Vec d[6], g[3];
                    for (long q = 0; q < 6; q++) d[q] = columns[q][p];
                    transform_weight_gradient(d, g);
                    for (long q = 0; q < 3; q++)
                        store(dw + ((k * 3 + p) * 3 + q) * C + c, g[q]);
                }
            }
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

// floats of memory that `winograd_weight_gradient` works in, besides s
long winograd_memory(long C, long K) { return 36 * (gradient_tiles(C, K) * (C + K) + 2 * SKEW); }

// dw of x and dy, see above; s: 36 K C floats
void winograd_weight_gradient(const void* x, const void* dy, float* s, float* memory, float* dw,
                              long images, long H, long W, long C, long K, int half) {
    if (half)
        weight_gradient((const BFloat16*)x, (const BFloat16*)dy, s, memory, dw, images,
                        Tiles(H, W), C, K);
    else
        weight_gradient((const float*)x, (const float*)dy, s, memory, dw, images, Tiles(H, W), C, K);
}
}
