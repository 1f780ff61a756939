// The products of tiles.cpp in bf16 on the processor's matrix unit (AMX), for tiles whose sides are multiples of 16.
//
// A register of the unit has 16 rows of 64 bytes. One instruction adds to 16 x 16 sums in fp32 the product of 16 rows of K
// elements with K / 2 rows of 16 words, where K is 32, or 16 where a tile has no more. Registers 0 to 3 hold sums. What the
// unit eats is laid out as for the other kernels, but for the left side of sample, whose rows are words of tokens.
//
// Included by tiles.cpp, whose names it uses.

#include <sys/syscall.h>
#include <unistd.h>

namespace amx {

bool permitted() {  // the system saves these registers only for programs that ask for them
    static const bool granted = !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */);
    return granted;
}

bool on = true;

bool serves(long r, long c) { return on && r % 16 == 0 && c % 16 == 0 && permitted(); }

// Compilers do not see that these instructions read memory.
#define READ() __asm__ volatile("" ::: "memory")

// Sets the registers up; others, such as torch's own products, find theirs as they left them.
class Registers {
    struct alignas(64) Config {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } before, own;

public:
    // Registers of the left side have rows of k elements, those of the right side k / 2 rows.
    Registers(long k, std::initializer_list<int> left, std::initializer_list<int> right) : before(), own() {
        _tile_storeconfig(&before);
        own.palette = 1;
        for (int i = 0; i < 8; ++i) own.rows[i] = 16, own.bytes[i] = 64;
        for (int i : left) own.bytes[i] = uint16_t(2 * k);
        for (int i : right) own.rows[i] = uint8_t(k / 2);
        READ();
        _tile_loadconfig(&own);
    }
    ~Registers() {
        READ();
        if (before.palette) _tile_loadconfig(&before);
        else _tile_release();
    }
};

inline void store16(const float* sums, u16* out) {
    _mm256_storeu_si256((__m256i*)out, (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(sums)));
}

// WIDE: 32 tokens of 32 outputs, else 64 tokens of 16; x is [inputs / K][tokens][K], packed points at the outputs' words.
template <bool WIDE>
void spread_kernel(const u16* x, Range tiles, const u32* packed, long k, long w, long K, u16* y, long outputs) {
    const long panel = (WIDE ? 32 : 64) * K, row = 2 * K;
    READ();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long e = 0; e < tiles.count; ++e) {
        const u16* a = x + tiles.inner[e] * (k / K) * panel;
        const u32* b = packed + tiles.slots[e] * (k / 2) * w;
        for (long i = 0; i < k; i += K, a += panel, b += K / 2 * w) {
            _tile_loadd(6, b, 4 * w);
            _tile_loadd(4, a, row);
            if (WIDE) {
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, b + 16, 4 * w);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a + 16 * K, row);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            } else {
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(5, a + 16 * K, row);
                _tile_dpbf16ps(1, 5, 6);
                _tile_loadd(4, a + 32 * K, row);
                _tile_dpbf16ps(2, 4, 6);
                _tile_loadd(5, a + 48 * K, row);
                _tile_dpbf16ps(3, 5, 6);
            }
        }
    }
    alignas(64) float sums[4][256];
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    if (WIDE) {
        for (long n = 0; n < 4; n += 2, y += 16 * outputs) UNROLL for (int m = 0; m < 16; ++m)
            _mm512_storeu_si512(y + m * outputs, (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(sums[n + 1] + 16 * m),
                                                                              _mm512_load_ps(sums[n] + 16 * m)));
        return;
    }
    for (long n = 0; n < 4; ++n, y += 16 * outputs) UNROLL for (int m = 0; m < 16; ++m) store16(sums[n] + 16 * m, y + m * outputs);
}

// As spread in tiles.cpp. Returns false where the unit cannot, or is not to; nothing is done then.
inline bool spread(const u16* x, const u16* values, u16* y, long T, long inputs, long outputs, long r, long c, bool along,
                   Index index, u32* packed, u32* scratch, int team) {
    const long w = along ? r : c, k = along ? c : r, blocks = outputs / w, count = index.begin[blocks];
    const bool wide = w % 32 == 0;
    const long K = k % 32 ? 16 : 32, size = wide ? 32 : 64, groups_together = TOGETHER / size;
    if (!serves(r, c) || T < size) return false;
    run(team, [&](int p) {
        for (long s = count * p / team; s < count * (p + 1) / team; ++s)
            pack_tile<Bf16>(values + s * r * c, r, c, along, packed + s * r * c / 2);
    });
    run(team, [&](int p) {
        const Registers registers(K, {4, 5}, {6, 7});
        u16* panels = (u16*)scratch + p * groups_together * size * inputs;
        const long all = (T + size - 1) / size, last = all * (p + 1) / team;
        for (long first = all * p / team; first < last; first += groups_together) {
            const long groups = min(groups_together, last - first);
            auto token = [&](long g) { return min((first + g) * size, T - size); };
            for (long g = 0; g < groups; ++g) for (long m = 0; m < size; ++m) {
                const u16* row = x + (token(g) + m) * inputs;
                u16* at = panels + g * inputs * size + m * K;
                if (K == 32) for (long i = 0; i < inputs; i += 32) _mm512_store_si512(at + i * size, _mm512_loadu_si512(row + i));
                else for (long i = 0; i < inputs; i += 16)
                    _mm256_store_si256((__m256i*)(at + i * size), _mm256_loadu_si256((const __m256i*)(row + i)));
            }
            for (long b = 0; b < blocks; ++b) for (long j = 0; j < w; j += wide ? 32 : 16) for (long g = 0; g < groups; ++g)
                (wide ? spread_kernel<true> : spread_kernel<false>)(panels + g * inputs * size, index[b], packed + j, k, w, K,
                                                                    y + token(g) * outputs + b * w + j, outputs);
        }
    });
    return true;
}

// a (tokens x columns) as left sides: [columns / 16][tokens / 32][16 columns][16 words]; this thread's share.
inline void turned(const u16* a, long tokens, long columns, long stride, u32* out, int p, int team) {
    const long strips = (columns + 31) / 32;
    for (long t = 0; t < tokens; t += 32) for (long s = strips * p / team; s < strips * (p + 1) / team; ++s) {
        alignas(64) u32 pairs[2][256] = {};
        for (long i = 0; i < 16 && t + 2 * i < tokens; ++i) {
            const u16* row = a + (t + 2 * i) * columns + 32 * s;
            Bf16::zip(row, t + 2 * i + 1 < tokens ? row + columns : nullptr, columns - 32 * s, pairs[0] + 16 * i, pairs[1] + 16 * i);
        }
        for (long half = 0; half < 2 && 32 * s + 16 * half < columns; ++half)
            transpose(pairs[half], 16, 16, 16, out + (2 * s + half) * stride + t / 32 * 256, 16);
    }
}

// 16 M rows of 16 N columns, at most 4 registers of sums; `next` words from a row's left sides to those 16 rows below.
template <int M, int N>
void sample_kernel(const u32* a, long next, const Column* columns, long blocks, long c, float* sums, u16* out, bool first, bool last) {
    READ();
#define EACH(DO) \
    if (M == 1) { DO(0, 0, 0); if (N > 1) DO(1, 0, 1); if (N > 2) DO(2, 0, 2); if (N > 3) DO(3, 0, 3); } \
    else { DO(0, 0, 0); DO(2, 1, 0); if (N > 1) { DO(1, 0, 1); DO(3, 1, 1); } }
#define BEGIN(I, m, n) do { if (first) _tile_zero(I); else _tile_loadd(I, sums + columns[n].at + 16 * m * c, 4 * c); } while (0)
#define END(I, m, n)                                                                                              \
    do {                                                                                                          \
        if (last) {                                                                                               \
            alignas(64) float whole[256];                                                                         \
            _tile_stored(I, whole, 64);                                                                           \
            UNROLL for (int i = 0; i < 16; ++i) store16(whole + 16 * i, out + columns[n].at + (16 * m + i) * c);  \
        } else _tile_stored(I, sums + columns[n].at + 16 * m * c, 4 * c);                                         \
    } while (0)
    EACH(BEGIN)
    for (long t = 0; t < blocks; ++t, a += 256) {
        const u32* b = columns[0].words + t * 256;
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (M == 1) {
            if (N > 1) {
                _tile_loadd(7, columns[1].words + t * 256, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (N > 2) {
                _tile_loadd(6, columns[2].words + t * 256, 64);
                _tile_dpbf16ps(2, 4, 6);
            }
            if (N > 3) {
                _tile_loadd(7, columns[3].words + t * 256, 64);
                _tile_dpbf16ps(3, 4, 7);
            }
        } else {
            _tile_loadd(5, a + next, 64);
            _tile_dpbf16ps(2, 5, 6);
            if (N > 1) {
                _tile_loadd(7, columns[1].words + t * 256, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    EACH(END)
#undef EACH
#undef BEGIN
#undef END
}

// As sample in tiles.cpp. Returns false as spread does.
inline bool sample(const u16* a, const u16* b, u16* out, long T, long rows, long cols, long r, long c, Index index, float* sums,
                   u32* scratch, int team) {
    if (!serves(r, c)) return false;
    const long n = rows / r, longest = min(CHUNK, T), stride = (longest + 31) / 32 * 256 + 16;
    u32 *left = scratch, *right = scratch + (rows + 31) / 16 * stride;
    for (long t = 0; t < T; t += longest) {
        const long tokens = min(longest, T - t), blocks = (tokens + 31) / 32;
        const bool first = !t, last = t + tokens == T;
        run(team, [&](int p) {
            turned(a + t * rows, tokens, rows, stride, left, p, team);
            panels<Bf16>(b + t * cols, tokens, cols, stride, right, p, team);
            const long strips = cols / 16, steps = (tokens + 1) / 2, full = 2 * ((strips + 1) / 2 * p / team);
            for (long s = full; s < min(strips, 2 * ((strips + 1) / 2 * (p + 1) / team)); ++s)  // up to whole registers
                std::memset(right + s * stride + steps * 16, 0, (blocks * 16 - steps) * 64);
        });
        run(team, [&](int p) {
            const Registers registers(32, {}, {});
            std::vector<Column> columns(cols / 16);
            for (long i = share(index, n, p, team); i < share(index, n, p + 1, team); ++i) {
                const long count = strips_of(index[i], r, c, right, stride, columns.data());
                for (long m = 0; m < r; m += r % 32 ? 16 : 32) for (long k = 0, step; k < count; k += step) {
                    step = min(count - k, r % 32 ? 4L : 2L);
                    auto kernel = r % 32 == 0 ? (step == 2 ? sample_kernel<2, 2> : sample_kernel<2, 1>)
                                  : step == 4 ? sample_kernel<1, 4>
                                  : step == 3 ? sample_kernel<1, 3>
                                  : step == 2 ? sample_kernel<1, 2>
                                              : sample_kernel<1, 1>;
                    kernel(left + (i * r + m) / 16 * stride, stride, columns.data() + k, blocks, c, sums + m * c, out + m * c, first, last);
                }
            }
        });
    }
    return true;
}

#undef READ

}  // namespace amx
