// Expand, compress and AdamW on the CPU, behind a C interface (see cpu.py).
//
// Expand and compress move units (a tile's bytes) and never look at the numbers in them, so one
// kernel serves every dtype. Units of 2, 4 and 8 bytes go through AVX-512 where this processor has
// it; all others, and all other processors, walk the set bits of 64-bit words of the mask.
// Results do not depend on the number of threads, nor on the instructions used.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "masks are read as little-endian words");

namespace {

constexpr int64_t WORD = 64;              // tiles in one word of the mask
constexpr int64_t MOVE_GRAIN = 1 << 21;   // dense bytes that are worth one more thread
constexpr int64_t ADAM_GRAIN = 1 << 16;   // elements that are worth one more thread
constexpr int CODES = 256;                // birth codes

// Runs body(0) ... body(parts - 1), each on its own thread, the first on this one.
template <class Body>
void run(int parts, const Body& body) {
    std::vector<std::thread> team;
    int next = 1;
    try {
        for (; next < parts; ++next) team.emplace_back(body, next);
    } catch (const std::system_error&) {  // no more threads to be had: do the rest here
    }
    body(0);
    for (; next < parts; ++next) body(next);
    for (auto& thread : team) thread.join();
}

int64_t parts_for(int64_t work, int64_t grain, int threads) {
    return std::clamp<int64_t>(work / grain, 1, std::max(threads, 1));
}

// ---- masks ------------------------------------------------------------------------------------

struct Mask {
    const uint8_t* bits;
    int64_t tiles;

    // Tiles [64 w, 64 w + 64) as bits; there are none at or beyond `tiles`.
    uint64_t word(int64_t w) const {
        uint64_t word = 0;
        const int64_t left = tiles - w * WORD;
        if (left >= WORD) {
            std::memcpy(&word, bits + w * 8, 8);
            return word;
        }
        std::memcpy(&word, bits + w * 8, (left + 7) / 8);
        return word & ((uint64_t{1} << left) - 1);
    }

    // The bits of word(w) that belong to tiles [first, last).
    uint64_t word(int64_t w, int64_t first, int64_t last) const {
        uint64_t some = word(w);
        if (first > w * WORD) some &= ~uint64_t{0} << (first - w * WORD);
        if (last < (w + 1) * WORD) some &= (uint64_t{1} << (last - w * WORD)) - 1;
        return some;
    }

    int64_t count(int64_t first, int64_t last) const {
        int64_t total = 0, w = first / WORD;
        if (first % WORD) total += __builtin_popcountll(word(w++, first, last));
        for (; (w + 1) * WORD <= last; ++w) {
            uint64_t whole;
            std::memcpy(&whole, bits + w * 8, 8);
            total += __builtin_popcountll(whole);
        }
        if (w * WORD < last) total += __builtin_popcountll(word(w, first, last));
        return total;
    }
};

// A canonical matrix cut into tiles of `height` rows, `across` of them side by side, each `unit` bytes wide.
struct Grid {
    int64_t tiles, unit, height, across;

    int64_t tile_bytes() const { return unit * height; }
    int64_t bytes() const { return tiles * tile_bytes(); }
};

// The tiles cut into one range per thread, with the active tiles before each range. Flat matrices
// (tiles of one row) are cut between words of the mask, others between rows of tiles.
struct Split {
    std::vector<int64_t> first, before;

    Split(const Mask& mask, const Grid& grid, int threads) {
        const int64_t parts = parts_for(grid.bytes(), MOVE_GRAIN, threads);
        const int64_t step = grid.height == 1 ? WORD : std::max<int64_t>(grid.across, 1);
        const int64_t steps = (mask.tiles + step - 1) / step;
        first.resize(parts + 1);
        before.resize(parts + 1);
        for (int64_t p = 0; p <= parts; ++p) first[p] = std::min(steps * p / parts * step, mask.tiles);
        run(static_cast<int>(parts), [&](int p) { before[p + 1] = mask.count(first[p], first[p + 1]); });
        for (int64_t p = 0; p < parts; ++p) before[p + 1] += before[p];
    }
    int parts() const { return static_cast<int>(first.size()) - 1; }
    int64_t active() const { return before.back(); }
};

// ---- any processor ----------------------------------------------------------------------------

// Copies one tile; UNIT is its size in bytes where the compiler may know it, else 0.
template <int UNIT>
inline void copy(char* to, const char* from, int64_t unit) {
    std::memcpy(to, from, UNIT ? UNIT : unit);
}

template <int UNIT>
const char* expand_word(uint64_t word, int64_t count, const char* values, char* dense, int64_t unit) {
    std::memset(dense, 0, count * unit);
    for (; word; word &= word - 1) {
        copy<UNIT>(dense + __builtin_ctzll(word) * unit, values, unit);
        values += unit;
    }
    return values;
}

template <int UNIT>
char* compress_word(uint64_t word, const char* dense, char* values, int64_t unit) {
    for (; word; word &= word - 1) {
        copy<UNIT>(values, dense + __builtin_ctzll(word) * unit, unit);
        values += unit;
    }
    return values;
}

// ---- AVX-512 ----------------------------------------------------------------------------------

// Lanes<UNIT>: COUNT tiles of UNIT bytes at a time, for the units that have such an instruction.
template <int UNIT>
struct Lanes {
    static constexpr int COUNT = 0;
};

#if defined(__AVX512F__)
template <>
struct Lanes<8> {
    static constexpr int COUNT = 8;
    static void expand(uint64_t mask, const char* values, char* dense) {
        _mm512_storeu_si512(dense, _mm512_maskz_expandloadu_epi64(static_cast<__mmask8>(mask), values));
    }
    static __m512i compress(uint64_t mask, const char* dense) {
        return _mm512_maskz_compress_epi64(static_cast<__mmask8>(mask), _mm512_loadu_si512(dense));
    }
    static void store(char* values, __m512i packed) { _mm512_storeu_si512(values, packed); }
    static void store_first(char* values, __m512i packed, int active) {
        _mm512_mask_storeu_epi64(values, static_cast<__mmask8>((1u << active) - 1), packed);
    }
};

template <>
struct Lanes<4> {
    static constexpr int COUNT = 16;
    static void expand(uint64_t mask, const char* values, char* dense) {
        _mm512_storeu_si512(dense, _mm512_maskz_expandloadu_epi32(static_cast<__mmask16>(mask), values));
    }
    static __m512i compress(uint64_t mask, const char* dense) {
        return _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), _mm512_loadu_si512(dense));
    }
    static void store(char* values, __m512i packed) { _mm512_storeu_si512(values, packed); }
    static void store_first(char* values, __m512i packed, int active) {
        _mm512_mask_storeu_epi32(values, static_cast<__mmask16>((1u << active) - 1), packed);
    }
};
#endif

#if defined(__AVX512VBMI2__) && defined(__AVX512BW__)
template <>
struct Lanes<2> {
    static constexpr int COUNT = 32;
    static void expand(uint64_t mask, const char* values, char* dense) {
        _mm512_storeu_si512(dense, _mm512_maskz_expandloadu_epi16(static_cast<__mmask32>(mask), values));
    }
    static __m512i compress(uint64_t mask, const char* dense) {
        return _mm512_maskz_compress_epi16(static_cast<__mmask32>(mask), _mm512_loadu_si512(dense));
    }
    static void store(char* values, __m512i packed) { _mm512_storeu_si512(values, packed); }
    static void store_first(char* values, __m512i packed, int active) {
        _mm512_mask_storeu_epi16(values, static_cast<__mmask32>((uint64_t{1} << active) - 1), packed);
    }
};
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
// Without VBMI2 there is nothing for 2 bytes: widen to 4, and narrow again.
template <>
struct Lanes<2> {
    static constexpr int COUNT = 16;
    static void expand(uint64_t mask, const char* values, char* dense) {
        const auto bits = static_cast<__mmask16>(mask);
        const auto some = static_cast<__mmask16>((1u << __builtin_popcount(bits)) - 1);
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, values));
        const __m512i spread = _mm512_maskz_expand_epi32(bits, wide);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dense), _mm512_cvtepi32_epi16(spread));
    }
    static __m256i compress(uint64_t mask, const char* dense) {
        const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(dense));
        const __m512i wide = _mm512_cvtepu16_epi32(narrow);
        return _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), wide));
    }
    static void store(char* values, __m256i packed) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), packed);
    }
    static void store_first(char* values, __m256i packed, int active) {
        _mm256_mask_storeu_epi16(values, static_cast<__mmask16>((1u << active) - 1), packed);
    }
};
#endif

// ---- ranges of tiles -------------------------------------------------------------------------

template <int UNIT>
void expand_range(const Mask& mask, int64_t first, int64_t last, const char* values, char* dense, int64_t unit) {
    using L = Lanes<UNIT>;
    for (int64_t w = first / WORD; w * WORD < last; ++w) {
        const uint64_t word = mask.word(w);
        char* out = dense + w * WORD * unit;
        const int64_t count = std::min(WORD, mask.tiles - w * WORD);
        if constexpr (L::COUNT > 0) {
            if (count == WORD) {
                constexpr uint64_t lanes = ~uint64_t{0} >> (WORD - L::COUNT);
                for (int64_t lane = 0; lane < WORD; lane += L::COUNT) {
                    const uint64_t bits = (word >> lane) & lanes;
                    L::expand(bits, values, out + lane * UNIT);
                    values += __builtin_popcountll(bits) * UNIT;
                }
                continue;
            }
        }
        values = expand_word<UNIT>(word, count, values, out, unit);
    }
}

// `end` is where the values of this range end: a whole vector may be stored only before it.
template <int UNIT>
void compress_range(const Mask& mask, int64_t first, int64_t last, const char* dense, char* values, char* end,
                    int64_t unit) {
    using L = Lanes<UNIT>;
    for (int64_t w = first / WORD; w * WORD < last; ++w) {
        const uint64_t word = mask.word(w);
        const char* in = dense + w * WORD * unit;
        if constexpr (L::COUNT > 0) {
            if (mask.tiles - w * WORD >= WORD) {
                constexpr uint64_t lanes = ~uint64_t{0} >> (WORD - L::COUNT);
                for (int64_t lane = 0; lane < WORD; lane += L::COUNT) {
                    const uint64_t bits = (word >> lane) & lanes;
                    const int active = __builtin_popcountll(bits);
                    const auto packed = L::compress(bits, in + lane * UNIT);
                    if (end - values >= L::COUNT * UNIT) L::store(values, packed);
                    else L::store_first(values, packed, active);
                    values += active * UNIT;
                }
                continue;
            }
        }
        values = compress_word<UNIT>(word, in, values, unit);
    }
}

// Calls body(tile) for the active tiles of [first, last), in order; `tile` is the offset of its first row.
template <class Body>
void for_each_tile(const Mask& mask, const Grid& grid, int64_t first, int64_t last, const Body& body) {
    for (int64_t row = first; row < last; row += grid.across) {
        const int64_t end = row + grid.across;
        for (int64_t w = row / WORD; w * WORD < end; ++w)
            for (uint64_t word = mask.word(w, row, end); word; word &= word - 1) {
                const int64_t column = w * WORD + __builtin_ctzll(word) - row;
                body(row * grid.tile_bytes() + column * grid.unit);
            }
    }
}

template <int UNIT>
void expand_tall(const Mask& mask, const Grid& grid, int64_t first, int64_t last, const char* values, char* dense) {
    std::memset(dense + first * grid.tile_bytes(), 0, (last - first) * grid.tile_bytes());
    for_each_tile(mask, grid, first, last, [&](int64_t tile) {
        for (int64_t r = 0; r < grid.height; ++r, values += grid.unit)
            copy<UNIT>(dense + tile + r * grid.across * grid.unit, values, grid.unit);
    });
}

template <int UNIT>
void compress_tall(const Mask& mask, const Grid& grid, int64_t first, int64_t last, const char* dense, char* values) {
    for_each_tile(mask, grid, first, last, [&](int64_t tile) {
        for (int64_t r = 0; r < grid.height; ++r, values += grid.unit)
            copy<UNIT>(values, dense + tile + r * grid.across * grid.unit, grid.unit);
    });
}

// Calls body(std::integral_constant<int, UNIT>) with the unit where it is a common one, else with 0.
template <class Body>
void with_unit(int64_t unit, const Body& body) {
    switch (unit) {
        case 2: return body(std::integral_constant<int, 2>{});
        case 4: return body(std::integral_constant<int, 4>{});
        case 8: return body(std::integral_constant<int, 8>{});
        case 16: return body(std::integral_constant<int, 16>{});
        case 32: return body(std::integral_constant<int, 32>{});
        case 64: return body(std::integral_constant<int, 64>{});
        case 128: return body(std::integral_constant<int, 128>{});
        default: return body(std::integral_constant<int, 0>{});
    }
}

// ---- AdamW ------------------------------------------------------------------------------------

struct Adam {
    float beta1_rest, beta2, beta2_rest, eps, keep;
    float step_size[CODES], correction[CODES];
};

inline float number(float x) { return x; }
inline float number(uint16_t bfloat16) {
    const uint32_t bits = uint32_t{bfloat16} << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

#if defined(__AVX512VBMI__) && defined(__AVX512BW__)
// A table of 256 floats as four tables of their bytes: those can be looked up 64 at a time, which
// costs a fraction of 64 loads from the table or of a gather.
struct Planes {
    __m512i plane[4][4];  // [byte of the float][quarter of the codes]

    explicit Planes(const float* table) {
        for (int byte = 0; byte < 4; ++byte) {
            uint8_t bytes[CODES];
            for (int code = 0; code < CODES; ++code)
                bytes[code] = reinterpret_cast<const uint8_t*>(table + code)[byte];
            for (int part = 0; part < 4; ++part) plane[byte][part] = _mm512_loadu_si512(bytes + 64 * part);
        }
    }

    // Writes the floats of 64 codes. Interleaving the bytes transposes groups of 4 codes (there are 4 x 4),
    // so `codes` come transposed, from `load`.
    void look_up(__m512i codes, float* found) const {
        const __mmask64 upper = _mm512_movepi8_mask(codes);
        __m512i byte[4];
        for (int b = 0; b < 4; ++b)
            byte[b] = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(plane[b][0], codes, plane[b][1]),
                                             _mm512_permutex2var_epi8(plane[b][2], codes, plane[b][3]));
        const __m512i low0 = _mm512_unpacklo_epi8(byte[0], byte[1]), low1 = _mm512_unpackhi_epi8(byte[0], byte[1]);
        const __m512i high0 = _mm512_unpacklo_epi8(byte[2], byte[3]), high1 = _mm512_unpackhi_epi8(byte[2], byte[3]);
        _mm512_storeu_si512(found, _mm512_unpacklo_epi16(low0, high0));
        _mm512_storeu_si512(found + 16, _mm512_unpackhi_epi16(low0, high0));
        _mm512_storeu_si512(found + 32, _mm512_unpacklo_epi16(low1, high1));
        _mm512_storeu_si512(found + 48, _mm512_unpackhi_epi16(low1, high1));
    }

    static __m512i load(const uint8_t* codes, int64_t count) {
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __mmask64 some = count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
        return _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(some, codes));
    }
};
#endif

inline void update(const Adam& a, float g, float& m, float& v, float& w, float step_size, float correction) {
    m = m + a.beta1_rest * (g - m);
    v = a.beta2 * v + a.beta2_rest * g * g;
    w = w * a.keep - step_size * m / (std::sqrt(v) / correction + a.eps);
}

template <class Grad, bool AGED>
void adamw_range(const Adam& a, int64_t n, float* __restrict weight, const Grad* __restrict grad,
                 float* __restrict exp_avg, float* __restrict exp_avg_sq, const uint8_t* __restrict birth) {
#if defined(__AVX512VBMI__) && defined(__AVX512BW__)
    if constexpr (AGED) {
        const Planes step_size(a.step_size), correction(a.correction);
        alignas(64) float steps[64], corrections[64];
        for (int64_t lo = 0; lo < n; lo += 64) {
            const int64_t count = std::min<int64_t>(64, n - lo);
            const __m512i codes = Planes::load(birth + lo, count);
            step_size.look_up(codes, steps);
            correction.look_up(codes, corrections);
            for (int64_t i = 0; i < count; ++i)
                update(a, number(grad[lo + i]), exp_avg[lo + i], exp_avg_sq[lo + i], weight[lo + i], steps[i],
                       corrections[i]);
        }
        return;
    }
#endif
    for (int64_t i = 0; i < n; ++i) {
        const int code = AGED ? birth[i] : 0;
        update(a, number(grad[i]), exp_avg[i], exp_avg_sq[i], weight[i], a.step_size[code], a.correction[code]);
    }
}

}  // namespace

extern "C" {

// 2: AVX-512 with VBMI2, 1: AVX-512 without, 0: the portable path.
int smet_level() {
#if defined(__AVX512VBMI2__) && defined(__AVX512BW__)
    return 2;
#elif defined(__AVX512F__)
    return 1;
#else
    return 0;
#endif
}

// Both return the number of active tiles of the mask; where that is not `active`, nothing is written.
// `unit` is the bytes of one row of a tile, `height` the rows, `across` the tiles side by side.
int64_t smet_expand(const uint8_t* bits, const char* values, char* dense, int64_t tiles, int64_t unit, int64_t height,
                    int64_t across, int64_t active, int threads) {
    const Mask mask{bits, tiles};
    const Grid grid{tiles, unit, height, across};
    const Split split(mask, grid, threads);
    if (split.active() != active) return split.active();
    with_unit(unit, [&](auto size) {
        run(split.parts(), [&](int p) {
            const int64_t first = split.first[p], last = split.first[p + 1];
            const char* from = values + split.before[p] * grid.tile_bytes();
            if (height == 1) expand_range<size()>(mask, first, last, from, dense, unit);
            else expand_tall<size()>(mask, grid, first, last, from, dense);
        });
    });
    return active;
}

int64_t smet_compress(const uint8_t* bits, const char* dense, char* values, int64_t tiles, int64_t unit,
                      int64_t height, int64_t across, int64_t active, int threads) {
    const Mask mask{bits, tiles};
    const Grid grid{tiles, unit, height, across};
    const Split split(mask, grid, threads);
    if (split.active() != active) return split.active();
    with_unit(unit, [&](auto size) {
        run(split.parts(), [&](int p) {
            const int64_t first = split.first[p], last = split.first[p + 1];
            char* to = values + split.before[p] * grid.tile_bytes();
            char* end = values + split.before[p + 1] * grid.tile_bytes();
            if (height == 1) compress_range<size()>(mask, first, last, dense, to, end, unit);
            else compress_tall<size()>(mask, grid, first, last, dense, to);
        });
    });
    return active;
}

// `grad` is bfloat16 if `half`, else float. `birth` may be null: then every code is 0.
void smet_adamw(float* weight, const void* grad, int half, float* exp_avg, float* exp_avg_sq, const uint8_t* birth,
                const float* step_size, const float* correction, int codes, double beta1, double beta2, double eps,
                double decay, int64_t n, int threads) {
    Adam a;
    a.beta1_rest = static_cast<float>(1 - beta1);
    a.beta2 = static_cast<float>(beta2);
    a.beta2_rest = static_cast<float>(1 - beta2);
    a.eps = static_cast<float>(eps);
    a.keep = static_cast<float>(1 - decay);
    std::fill_n(a.step_size, CODES, NAN);  // a code outside the tables must not pass unseen
    std::fill_n(a.correction, CODES, NAN);
    std::copy_n(step_size, std::min(codes, CODES), a.step_size);
    std::copy_n(correction, std::min(codes, CODES), a.correction);
    const int64_t parts = parts_for(n, ADAM_GRAIN, threads);
    run(static_cast<int>(parts), [&](int p) {
        const int64_t lo = n * p / parts, count = n * (p + 1) / parts - lo;
        const auto apply = [&](auto* g) {
            if (birth)
                adamw_range<std::decay_t<decltype(*g)>, true>(a, count, weight + lo, g + lo, exp_avg + lo,
                                                              exp_avg_sq + lo, birth + lo);
            else
                adamw_range<std::decay_t<decltype(*g)>, false>(a, count, weight + lo, g + lo, exp_avg + lo,
                                                               exp_avg_sq + lo, nullptr);
        };
        if (half) apply(static_cast<const uint16_t*>(grad));
        else apply(static_cast<const float*>(grad));
    });
}

}  // extern "C"
