// Products with a matrix W (rows x cols) of which only active r x c tiles are stored (see tiles_cpu.py).
//
//   spread   y[t, o] = sum_k x[t, k] A[o, k]     A = W (forward) or W^T (gradient of the input)
//   sample   g[o, i] = sum_t a[t, o] b[t, i]     at active tiles only (gradient of the values)
//
// In bf16 or fp32, sums in fp32; needs AVX-512. Tiles lie one after another in row-major order of the mask; r is a multiple
// of 8, c of 16. A "word" is 32 bits: one fp32, or a pair of bf16 that lie next to each other along the sum, which is what
// vdpbf16ps eats (where the processor lacks it, two multiply-adds of the halves stand in for it).
//
// Where tiles are 32 x 32 or more, spread sums 12 tokens x 32 outputs over all active tiles of a row in 24 registers, with x
// copied to panels of 12 tokens. Smaller ones have tokens across the registers: 8 outputs x 32 tokens, with x and y
// transposed on the way. sample sums 8 rows x 48 columns, from as many tiles of the row as that takes, over tokens.
// The order of every sum is fixed, so results do not depend on the number of threads. On processors that have a matrix unit,
// it multiplies bf16 where sides are multiples of 16: see tiles_amx.h.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define SERVED 1
#include <immintrin.h>
#else
#define SERVED 0
#endif

#if SERVED

using std::min;
using u16 = uint16_t;
using u32 = uint32_t;

namespace {

#define UNROLL _Pragma("GCC unroll 32")

constexpr long M = 12, V = 32;    // tokens of one kernel: one by one, or across two registers
constexpr long TOGETHER = 192;    // tokens that share a pass over W
constexpr long CHUNK = 1024;      // tokens between spills of sums
constexpr long PIECE = 32;        // elements of one token that lie together in a panel of M tokens

template <class Body>
void run(int team, const Body& body) {  // on the pool that torch's own operators use
    #pragma omp parallel for num_threads(team) schedule(static, 1)
    for (int p = 0; p < team; ++p) body(p);
}

__mmask16 lanes(long count) { return count >= 16 ? 0xffff : (1u << count) - 1; }

// ---- the two types ------------------------------------------------------------------------------

struct Fp32 {
    using T = float;
    static constexpr long K = 1;  // elements of a word
    using Operand = __m512;
    static Operand load(const u32* words) { return _mm512_loadu_ps(words); }
    static Operand spread(u32 word) { return _mm512_castsi512_ps(_mm512_set1_epi32(int(word))); }
    static __m512 dot(__m512 sum, Operand a, Operand b) { return _mm512_fmadd_ps(a, b, sum); }
    static void store(__m512 sum, T* out) { _mm512_storeu_ps(out, sum); }
    // Rows of outputs, a register of tokens each: word m is output m of its token.
    template <int N> static void store_turned(const __m512 (&sum)[8][N], u32* y) {
        UNROLL for (int m = 0; m < 8; ++m) UNROLL for (int n = 0; n < N; ++n) _mm512_storeu_ps(y + m * V + 16 * n, sum[m][n]);
    }
    // Two rows of up to 32 columns, here just the first: `out` takes its first 16 words, `more` the others.
    static void zip(const T* a, const T*, long columns, u32* out, u32* more) {
        _mm512_mask_storeu_ps(out, lanes(columns), _mm512_maskz_loadu_ps(lanes(columns), a));
        if (columns > 16)
            _mm512_mask_storeu_ps(more, lanes(columns - 16), _mm512_maskz_loadu_ps(lanes(columns - 16), a + 16));
    }
};

struct Bf16 {
    using T = u16;
    static constexpr long K = 2;
#ifdef __AVX512BF16__
    using Operand = __m512i;
    static Operand load(const u32* words) { return _mm512_loadu_si512(words); }
    static Operand spread(u32 word) { return _mm512_set1_epi32(int(word)); }
    static __m512 dot(__m512 sum, Operand a, Operand b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
    static __m512i rounded(__m512 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }
#else
    struct Operand { __m512 low, high; };  // as fp32: a bf16 is the upper half of one
    static Operand halves(__m512i words) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
                _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000u))))};
    }
    static Operand load(const u32* words) { return halves(_mm512_loadu_si512(words)); }
    static Operand spread(u32 word) { return halves(_mm512_set1_epi32(int(word))); }
    static __m512 dot(__m512 sum, const Operand& a, const Operand& b) {
        return _mm512_fmadd_ps(a.high, b.high, _mm512_fmadd_ps(a.low, b.low, sum));
    }
    static __m512i rounded(__m512 x) {  // to nearest, ties to even; NaN stays NaN
        const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 none = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        return _mm512_srli_epi32(_mm512_mask_or_epi32(up, none, bits, _mm512_set1_epi32(0x400000)), 16);
    }
#endif
    static void store(__m512 sum, T* out) { _mm256_storeu_si256((__m256i*)out, _mm512_cvtepi32_epi16(rounded(sum))); }
    template <int N> static void store_turned(const __m512 (&sum)[8][N], u32* y) {
        UNROLL for (int m = 0; m < 8; m += 2) UNROLL for (int n = 0; n < N; ++n)
            _mm512_storeu_si512(y + m / 2 * V + 16 * n,
                                _mm512_or_si512(rounded(sum[m][n]), _mm512_slli_epi32(rounded(sum[m + 1][n]), 16)));
    }
    static void zip(const T* a, const T* b, long columns, u32* out, u32* more) {
        alignas(64) static const u16 pairs[64] = {
            0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
            16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62,
            31, 63};
        const __mmask32 k = columns >= 32 ? ~0u : (1u << columns) - 1;
        const __m512i x = _mm512_maskz_loadu_epi16(k, a);
        const __m512i y = b ? _mm512_maskz_loadu_epi16(k, b) : _mm512_setzero_si512();  // an odd last token has no partner
        _mm512_mask_storeu_epi32(out, lanes(columns), _mm512_permutex2var_epi16(x, _mm512_load_si512(pairs), y));
        if (columns > 16)
            _mm512_mask_storeu_epi32(more, lanes(columns - 16), _mm512_permutex2var_epi16(x, _mm512_load_si512(pairs + 32), y));
    }
};

// ---- layouts ------------------------------------------------------------------------------------

// Words, `rows` x `columns` (each at most 16), transposed.
inline void transpose(const u32* in, long ldi, long rows, long columns, u32* out, long ldo) {
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 16; ++i)
        a[i] = i < rows ? _mm512_maskz_loadu_epi32(lanes(columns), in + i * ldi) : _mm512_setzero_si512();
    UNROLL for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) UNROLL for (int j = 0; j < 2; ++j) {
        a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
        a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
    UNROLL for (int i = 0; i < 4; ++i) UNROLL for (int j = 0; j < 16; j += 8) {
        b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
        b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
    }
    UNROLL for (int i = 0; i < 8; ++i) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    }
    UNROLL for (int i = 0; i < 16; ++i)
        if (i < columns) _mm512_mask_storeu_epi32(out + i * ldo, lanes(rows), a[i]);
}

// A tile as [words along the sum][outputs]; along: outputs are its rows, else its columns.
template <class F>
void pack_tile(const typename F::T* tile, long r, long c, bool along, u32* out) {
    const long words = c / F::K;
    if (along) {
        for (long i = 0; i < r; i += 16) for (long j = 0; j < words; j += 16)
            transpose((const u32*)tile + i * words + j, words, min(16L, r - i), min(16L, words - j), out + j * r + i, r);
        return;
    }
    for (long i = 0; i < r; i += F::K) for (long j = 0; j < c; j += 32) {
        u32* at = out + i / F::K * c + j;
        F::zip(tile + i * c + j, tile + (i + 1) * c + j, c - j, at, at + 16);
    }
}

// Active tiles as one row (or column) of tiles sees them.
struct Range {
    const int32_t *inner, *slots;
    long count;
};

struct Index {
    const int32_t *begin, *inner, *slots;
    Range operator[](long row) const { return {inner + begin[row], slots + begin[row], begin[row + 1] - begin[row]}; }
};

// ---- spread -------------------------------------------------------------------------------------

// M tokens of 32 outputs; x is [inputs / PIECE][M][PIECE], packed points at the outputs' words.
template <class F>
void wide_kernel(const typename F::T* x, Range tiles, const u32* packed, long k, long w, typename F::T* y, long outputs) {
    constexpr long WORDS = PIECE / F::K;
    __m512 sum[M][2] = {};
    for (long e = 0; e < tiles.count; ++e) {
        const u32* a = (const u32*)(x + tiles.inner[e] * k * M);
        const u32* b = packed + tiles.slots[e] * (k / F::K) * w;
        for (const u32* stop = a + k / F::K * M; a != stop; a += WORDS * M) for (long i = 0; i < WORDS; ++i, b += w) {
            const auto b0 = F::load(b), b1 = F::load(b + 16);
            UNROLL for (int m = 0; m < M; ++m) {
                const auto s = F::spread(a[WORDS * m + i]);
                sum[m][0] = F::dot(sum[m][0], s, b0);
                sum[m][1] = F::dot(sum[m][1], s, b1);
            }
        }
    }
    UNROLL for (int m = 0; m < M; ++m) UNROLL for (int n = 0; n < 2; ++n) F::store(sum[m][n], y + m * outputs + 16 * n);
}

// V tokens of 8 outputs; x is [words along the sum][V], packed points at the outputs' words, y is [words of outputs][V].
template <class F>
void narrow_kernel(const u32* x, Range tiles, const u32* packed, long k, long w, u32* y) {
    __m512 sum[8][2] = {};
    for (long e = 0; e < tiles.count; ++e) {
        const u32 *a = packed + tiles.slots[e] * (k / F::K) * w, *b = x + tiles.inner[e] * (k / F::K) * V;
        for (const u32* stop = b + k / F::K * V; b != stop; b += V, a += w) {
            const auto b0 = F::load(b), b1 = F::load(b + 16);
            UNROLL for (int m = 0; m < 8; ++m) {
                const auto s = F::spread(a[m]);
                sum[m][0] = F::dot(sum[m][0], s, b0);
                sum[m][1] = F::dot(sum[m][1], s, b1);
            }
        }
    }
    F::template store_turned<2>(sum, y);
}

// y (T x outputs) = x (T x inputs) A^T, T >= V; the last tokens are computed twice where M or V does not divide T.
template <class F>
void spread(const typename F::T* x, const typename F::T* values, typename F::T* y, long T, long inputs, long outputs, long r,
            long c, bool along, Index index, u32* packed, u32* scratch, int team) {
    const long w = along ? r : c, k = along ? c : r, tiles = outputs / w, count = index.begin[tiles];
    const long size = w % 32 || k % 32 ? V : M, groups_together = TOGETHER / size;
    const long in_words = inputs / F::K, out_words = outputs / F::K;
    run(team, [&](int p) {
        for (long s = count * p / team; s < count * (p + 1) / team; ++s)
            pack_tile<F>(values + s * r * c, r, c, along, packed + s * r * c / F::K);
    });
    run(team, [&](int p) {
        const long in = (in_words + 15) / 16 * 16 * size, out = (out_words + 15) / 16 * 16 * size;  // of one group of tokens
        u32 *turned = scratch + p * groups_together * (in + out), *turned_y = turned + groups_together * in;
        const long all = (T + size - 1) / size, last = all * (p + 1) / team;
        for (long first = all * p / team; first < last; first += groups_together) {
            const long groups = min(groups_together, last - first);
            auto token = [&](long g) { return min((first + g) * size, T - size); };
            if (size == M) {
                for (long g = 0; g < groups; ++g) for (long m = 0; m < M; ++m) for (long i = 0; i < inputs; i += PIECE)
                    std::memcpy((typename F::T*)(turned + g * in) + i * M + m * PIECE, x + (token(g) + m) * inputs + i,
                                PIECE * sizeof(*x));
                for (long b = 0; b < tiles; ++b) for (long j = 0; j < w; j += 32) for (long g = 0; g < groups; ++g)
                    wide_kernel<F>((typename F::T*)(turned + g * in), index[b], packed + j, k, w,
                                   y + token(g) * outputs + b * w + j, outputs);
                continue;
            }
            for (long g = 0; g < groups; ++g) for (long n = 0; n < V; n += 16) for (long i = 0; i < in_words; i += 16)
                transpose((const u32*)(x + (token(g) + n) * inputs) + i, in_words, 16, min(16L, in_words - i),
                          turned + g * in + i * V + n, V);
            for (long b = 0; b < tiles; ++b) for (long g = 0; g < groups; ++g) for (long j = 0; j < w; j += 8)
                narrow_kernel<F>(turned + g * in, index[b], packed + j, k, w, turned_y + g * out + (b * w + j) / F::K * V);
            for (long g = 0; g < groups; ++g) for (long n = 0; n < V; n += 16) for (long i = 0; i < out_words; i += 16)
                transpose(turned_y + g * out + i * V + n, V, min(16L, out_words - i), 16,
                          (u32*)(y + (token(g) + n) * outputs) + i, out_words);
        }
    });
}

// ---- sample -------------------------------------------------------------------------------------

struct Column {
    const u32* words;  // the panel of 16 columns of a tile
    long at;           // where in the values they go
};

template <class F, int N>
void sample_kernel(const u32* a, const Column* columns, long steps, long c, float* sums, typename F::T* out, bool first, bool last) {
    __m512 sum[8][N];
    const u32* b[N];
    UNROLL for (int n = 0; n < N; ++n) {
        b[n] = columns[n].words;
        UNROLL for (int m = 0; m < 8; ++m)
            sum[m][n] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + columns[n].at + m * c);
    }
    for (long t = 0; t < steps * 16; t += 16) {
        typename F::Operand v[N];
        UNROLL for (int n = 0; n < N; ++n) v[n] = F::load(b[n] + t);
        UNROLL for (int m = 0; m < 8; ++m) {
            const auto s = F::spread(a[t + m]);
            UNROLL for (int n = 0; n < N; ++n) sum[m][n] = F::dot(sum[m][n], s, v[n]);
        }
    }
    UNROLL for (int n = 0; n < N; ++n) UNROLL for (int m = 0; m < 8; ++m) {
        if (last) F::store(sum[m][n], out + columns[n].at + m * c);
        else _mm512_storeu_ps(sums + columns[n].at + m * c, sum[m][n]);
    }
}

// x (tokens x columns) as panels of 16 columns, [words of tokens][16] each; this thread's share of the panels.
template <class F>
void panels(const typename F::T* x, long tokens, long columns, long stride, u32* out, int p, int team) {
    const long steps = (tokens + F::K - 1) / F::K, strips = (columns + 31) / 32;
    for (long t0 = 0; t0 < steps; t0 += 16) for (long s = strips * p / team; s < strips * (p + 1) / team; ++s)
        for (long t = t0; t < min(t0 + 16, steps); ++t) {
            const auto* row = x + F::K * t * columns + 32 * s;
            u32* at = out + 2 * s * stride + t * 16;
            F::zip(row, F::K * t + 1 < tokens ? row + columns : nullptr, columns - 32 * s, at, at + stride);
        }
}

// The first row of tiles of a thread's share of n, which are even by tiles.
inline long share(Index index, long n, int p, int team) {
    return p == team ? n : std::lower_bound(index.begin, index.begin + n, long(index.begin[n]) * p / team) - index.begin;
}

// The strips of 16 columns of a row of tiles, and how many they are; `right` points at the panels.
inline long strips_of(Range tiles, long r, long c, const u32* right, long stride, Column* columns) {
    long count = 0;
    for (long e = 0; e < tiles.count; ++e) for (long j = 0; j < c; j += 16)
        columns[count++] = {right + (tiles.inner[e] * c + j) / 16 * stride, tiles.slots[e] * r * c + j};
    return count;
}

// out = active tiles of a^T b for a (T x rows), b (T x cols).
template <class F>
void sample(const typename F::T* a, const typename F::T* b, typename F::T* out, long T, long rows, long cols, long r, long c,
            Index index, float* sums, u32* scratch, int team) {
    const long n = rows / r, longest = min(CHUNK, T), most = (longest + F::K - 1) / F::K;
    const long stride = most * 16 + 16;  // + 16: panels start in different cache sets
    u32 *left = scratch, *right = scratch + (rows + 31) / 16 * stride;
    for (long t = 0; t < T; t += longest) {
        const long tokens = min(longest, T - t), steps = (tokens + F::K - 1) / F::K;
        const bool first = !t, last = t + tokens == T;
        run(team, [&](int p) {
            panels<F>(a + t * rows, tokens, rows, stride, left, p, team);
            panels<F>(b + t * cols, tokens, cols, stride, right, p, team);
        });
        run(team, [&](int p) {
            std::vector<Column> columns(cols / 16);
            for (long i = share(index, n, p, team); i < share(index, n, p + 1, team); ++i) {
                const long count = strips_of(index[i], r, c, right, stride, columns.data());
                for (long k = 0; k < count; k += 3) for (long m = 0; m < r; m += 8) {
                    const u32* words = left + (i * r + m) / 16 * stride + (i * r + m) % 16;
                    auto kernel = count - k > 2    ? sample_kernel<F, 3>
                                  : count - k == 2 ? sample_kernel<F, 2>
                                                   : sample_kernel<F, 1>;
                    kernel(words, columns.data() + k, steps, c, sums + m * c, out + m * c, first, last);
                }
            }
        });
    }
}

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define MATRIX_UNIT 1
#include "tiles_amx.h"
#else
#define MATRIX_UNIT 0
#endif

template <class F, class... Given>
void best_spread(Given... given) {
#if MATRIX_UNIT
    if constexpr (F::K == 2) if (amx::spread(given...)) return;
#endif
    spread<F>(given...);
}

template <class F, class... Given>
void best_sample(Given... given) {
#if MATRIX_UNIT
    if constexpr (F::K == 2) if (amx::sample(given...)) return;
#endif
    sample<F>(given...);
}

}  // namespace

// ---- interface ----------------------------------------------------------------------------------

#define INTERFACE(NAME, F)                                                                                                    \
    extern "C" void smet_spread_##NAME(const F::T* x, const F::T* values, F::T* y, long T, long inputs, long outputs, long r, \
                                       long c, int along, const int32_t* begin, const int32_t* inner, const int32_t* slots,  \
                                       u32* packed, u32* scratch, int team) {                                                \
        best_spread<F>(x, values, y, T, inputs, outputs, r, c, along, Index{begin, inner, slots}, packed, scratch, team);             \
    }                                                                                                                        \
    extern "C" void smet_sample_##NAME(const F::T* a, const F::T* b, F::T* out, long T, long rows, long cols, long r, long c, \
                                       const int32_t* begin, const int32_t* inner, const int32_t* slots, float* sums,        \
                                       u32* scratch, int team) {                                                             \
        best_sample<F>(a, b, out, T, rows, cols, r, c, Index{begin, inner, slots}, sums, scratch, team);                               \
    }
INTERFACE(fp32, Fp32)
INTERFACE(bf16, Bf16)

#endif

// What bf16 is multiplied with: nothing, AVX-512, AVX-512 BF16, or AMX where tiles allow it.
extern "C" int smet_tiles_served() {
#if !SERVED
    return 0;
#elif MATRIX_UNIT
    return amx::on && amx::permitted() ? 3 : 2;
#elif defined(__AVX512BF16__)
    return 2;
#else
    return 1;
#endif
}

// Whether the matrix unit may be used, where there is one.
extern "C" void smet_tiles_matrix_unit(int on) {
#if SERVED && MATRIX_UNIT
    amx::on = on;
#endif
}

// For each row and each column of tiles its active tiles, from the packed mask; returns how many there are. Never writes
// more than `most`, so a mask that does not fit its values costs no memory of others.
extern "C" long smet_tiles_index(const uint8_t* bits, long n, long m, long most, int32_t* row_begin, int32_t* row_inner,
                                 int32_t* row_slots, int32_t* col_begin, int32_t* col_inner, int32_t* col_slots) {
    std::fill(row_begin, row_begin + n + 1, 0);
    std::fill(col_begin, col_begin + m + 1, 0);
    long slot = 0;
    const long tiles = n * m;
    for (long at = 0; at < tiles; at += 64) {
        uint64_t word = 0;
        std::memcpy(&word, bits + at / 8, std::min(8L, (tiles - at + 7) / 8));
        if (tiles - at < 64) word &= (uint64_t(1) << (tiles - at)) - 1;
        for (; word; word &= word - 1, ++slot) {
            if (slot >= most) continue;
            const long tile = at + __builtin_ctzll(word);
            row_inner[slot] = int32_t(tile % m);
            row_slots[slot] = int32_t(slot);
            ++row_begin[tile / m + 1];
            ++col_begin[tile % m + 1];
        }
    }
    for (long i = 0; i < n; ++i) row_begin[i + 1] += row_begin[i];
    for (long j = 0; j < m; ++j) col_begin[j + 1] += col_begin[j];
    std::vector<int32_t> next(col_begin, col_begin + m);
    for (long i = 0; i < n; ++i) for (int32_t k = row_begin[i]; k < row_begin[i + 1]; ++k) {
        const int32_t at = next[row_inner[k]]++;
        col_inner[at] = int32_t(i);
        col_slots[at] = k;
    }
    return slot;
}
