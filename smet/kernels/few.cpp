// The product of a few tokens with a sparse matrix on the CPU, from packed mask and active values (see few_cpu.py).
//
// A token reads every weight once, so that a product takes as long as memory takes to bring them: active values and a
// bit for each tile are a fraction of the dense matrix, which is never made. Sums are fp32. Results do not depend on
// the number of threads: rows of outputs are summed by one thread each, and columns in a fixed number of parts.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "masks are read as little-endian words");

namespace {

constexpr int64_t PARTS = 16;  // of the rows, where columns are outputs

inline float number(float value) { return value; }
inline float number(uint16_t bits) {  // bf16
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

struct Mask {
    const uint8_t* bits;
    int64_t bytes;

    // Tiles [first, first + count) as bits, count at most 16.
    uint32_t some(int64_t first, int64_t count) const {
        const int64_t at = first / 8;
        uint32_t word = 0;
        if (at + 4 <= bytes)
            std::memcpy(&word, bits + at, 4);
        else
            std::memcpy(&word, bits + at, bytes - at);
        return (word >> (first % 8)) & ((uint32_t{1} << count) - 1);
    }
};

template <class T>
struct Product {
    Mask mask;
    const int64_t* starts;  // active tiles before each row of tiles
    const T* values;
    const float* x;  // (tokens, inputs)
    float* y;        // (tokens, outputs)
    int64_t tall, wide, height, width, tokens;

    int64_t rows() const { return tall * height; }
    int64_t cols() const { return wide * width; }

    // Calls body(column of tiles, values of the tile) for the active tiles of a row of tiles.
    template <class Body>
    void each(int64_t row, const Body& body) const {
        const T* tile = values + starts[row] * height * width;
        for (int64_t first = 0; first < wide; first += 16) {
            uint32_t word = mask.some(row * wide + first, std::min<int64_t>(16, wide - first));
            for (; word; word &= word - 1, tile += height * width) body(first + __builtin_ctz(word), tile);
        }
    }

    // One row of tiles, whose rows are outputs: y = M x.
    void gather(int64_t row, float* sums) const {
        std::fill(sums, sums + height * tokens, 0.0f);
        each(row, [&](int64_t col, const T* tile) {
            for (int64_t a = 0; a < height; ++a)
                for (int64_t t = 0; t < tokens; ++t) {
                    const float* in = x + t * cols() + col * width;
                    float sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (int64_t b = 0; b < width; ++b) sum += number(tile[a * width + b]) * in[b];
                    sums[a * tokens + t] += sum;
                }
        });
        for (int64_t a = 0; a < height; ++a)
            for (int64_t t = 0; t < tokens; ++t) y[t * rows() + row * height + a] = sums[a * tokens + t];
    }

    // One row of tiles, whose columns are outputs: out += M^T x, of (tokens, columns).
    void scatter(int64_t row, float* out) const {
        each(row, [&](int64_t col, const T* tile) {
            for (int64_t a = 0; a < height; ++a)
                for (int64_t t = 0; t < tokens; ++t) {
                    const float in = x[t * rows() + row * height + a];
                    float* to = out + t * cols() + col * width;
#pragma omp simd
                    for (int64_t b = 0; b < width; ++b) to[b] += number(tile[a * width + b]) * in;
                }
        });
    }
};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define WIDE 1

// The next `count` values at the places of `bits`. Expanding straight from memory is slow on some processors.
inline __m512 spread(const float* values, __mmask16 bits, int count) {
    const auto some = static_cast<__mmask16>((uint32_t{1} << count) - 1);
    return _mm512_maskz_expand_ps(bits, _mm512_maskz_loadu_ps(some, values));
}
inline __m512 spread(const uint16_t* values, __mmask16 bits, int count) {
    const auto some = static_cast<__mmask16>((uint32_t{1} << count) - 1);
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, values)), 16);
    return _mm512_maskz_expand_ps(bits, _mm512_castsi512_ps(wide));
}

// Single weights, sixteen columns at a time. Calls body(column, weights, which columns there are).
template <class T, class Body>
inline void sixteens(const Product<T>& p, int64_t row, const Body& body) {
    const T* values = p.values + p.starts[row];
    for (int64_t col = 0; col < p.wide; col += 16) {
        const int64_t count = std::min<int64_t>(16, p.wide - col);
        const uint32_t bits = p.mask.some(row * p.wide + col, count);
        const int active = __builtin_popcount(bits);
        body(col, spread(values, static_cast<__mmask16>(bits), active),
             static_cast<__mmask16>((uint32_t{1} << count) - 1));
        values += active;
    }
}

template <int TOKENS, class T>
void gather_singles(const Product<T>& p, int64_t row) {
    __m512 sums[TOKENS];
    for (auto& sum : sums) sum = _mm512_setzero_ps();
    sixteens(p, row, [&](int64_t col, __m512 weights, __mmask16 there) {
        for (int t = 0; t < TOKENS; ++t)
            sums[t] = _mm512_fmadd_ps(weights, _mm512_maskz_loadu_ps(there, p.x + t * p.wide + col), sums[t]);
    });
    for (int t = 0; t < TOKENS; ++t) p.y[t * p.tall + row] = _mm512_reduce_add_ps(sums[t]);
}

template <class T>
void scatter_singles(const Product<T>& p, int64_t row, float* out) {
    sixteens(p, row, [&](int64_t col, __m512 weights, __mmask16 there) {
        for (int64_t t = 0; t < p.tokens; ++t) {
            float* to = out + t * p.wide + col;
            const __m512 in = _mm512_set1_ps(p.x[t * p.tall + row]);
            _mm512_mask_storeu_ps(to, there, _mm512_fmadd_ps(weights, in, _mm512_maskz_loadu_ps(there, to)));
        }
    });
}

template <class T>
void gather_row(const Product<T>& p, int64_t row, float* sums) {
    if (p.height != 1 || p.width != 1) return p.gather(row, sums);
    switch (p.tokens) {
        case 1: return gather_singles<1>(p, row);
        case 2: return gather_singles<2>(p, row);
        case 3: return gather_singles<3>(p, row);
        case 4: return gather_singles<4>(p, row);
        default: return p.gather(row, sums);
    }
}
#endif

template <class T>
void by_rows(const Product<T>& p, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sums(p.height * p.tokens);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < p.tall; ++row) {
#ifdef WIDE
            gather_row(p, row, sums.data());
#else
            p.gather(row, sums.data());
#endif
        }
    }
}

template <class T>
void by_columns(const Product<T>& p, int threads) {
    const int64_t parts = std::min(PARTS, p.tall), size = p.tokens * p.cols();
    std::vector<float> out(parts * size, 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t row = p.tall * part / parts; row < p.tall * (part + 1) / parts; ++row) {
#ifdef WIDE
            if (p.height == 1 && p.width == 1) {
                scatter_singles(p, row, out.data() + part * size);
                continue;
            }
#endif
            p.scatter(row, out.data() + part * size);
        }
    std::copy(out.begin(), out.begin() + size, p.y);
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t at = 0; at < size; ++at) p.y[at] += out[part * size + at];
}

template <class T>
void product(const uint8_t* bits, int64_t bytes, const int64_t* starts, const void* values, const float* x, float* y,
             int64_t tall, int64_t wide, int64_t height, int64_t width, int64_t tokens, int rows, int threads) {
    const Product<T> p{{bits, bytes}, starts, static_cast<const T*>(values), x, y, tall, wide, height, width, tokens};
    rows ? by_rows(p, threads) : by_columns(p, threads);
}

}  // namespace

extern "C" {

void smet_few_fp32(const uint8_t* bits, int64_t bytes, const int64_t* starts, const void* values, const float* x,
                   float* y, int64_t tall, int64_t wide, int64_t height, int64_t width, int64_t tokens, int rows,
                   int threads) {
    product<float>(bits, bytes, starts, values, x, y, tall, wide, height, width, tokens, rows, threads);
}

void smet_few_bf16(const uint8_t* bits, int64_t bytes, const int64_t* starts, const void* values, const float* x,
                   float* y, int64_t tall, int64_t wide, int64_t height, int64_t width, int64_t tokens, int rows,
                   int threads) {
    product<uint16_t>(bits, bytes, starts, values, x, y, tall, wide, height, width, tokens, rows, threads);
}
}
