// Norms, rotations, gates, softmax and loss on the CPU, each in one pass over its tensors, behind a C interface (see
// cpu.py, and plain.py for the formulas).
//
// Vectors are the compiler's own, so that any processor runs this. Sums are made in fp32, in an order that depends on
// sizes alone: results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 16;
constexpr int64_t PARTS = 16;  // partial sums of a norm's weight gradient
typedef float Real __attribute__((vector_size(64)));
typedef int32_t Whole __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Half __attribute__((vector_size(32)));

template <class To, class From>
inline To as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline Real all(float x) { return x - Real{}; }

// bf16 is the upper half of fp32.
inline Real widened(Half half) { return as<Real>(__builtin_convertvector(half, Bits) << 16); }
inline Half rounded(Real x) {
    const Bits bits = as<Bits>(x);
    const Bits near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
    const Bits nan = as<Bits>(x != x);
    return __builtin_convertvector((near & ~nan) | (nan & 0x7fc0), Half);
}

struct bf16 {
    uint16_t bits;
};

inline Real load(const float* from) {
    Real x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
inline Real load(const bf16* from) {
    Half half;
    std::memcpy(&half, from, sizeof half);
    return widened(half);
}
inline void store(float* to, Real x) { std::memcpy(to, &x, sizeof x); }
inline void store(bf16* to, Real x) {
    const Half half = rounded(x);
    std::memcpy(to, &half, sizeof half);
}
template <class T>
inline Real load(const T* from, int64_t count) {
    if (count >= LANES) return load(from);
    T some[LANES] = {};
    std::memcpy(some, from, count * sizeof(T));
    return load(some);
}
template <class T>
inline void store(T* to, Real x, int64_t count) {
    if (count >= LANES) return store(to, x);
    T some[LANES];
    store(some, x);
    std::memcpy(to, some, count * sizeof(T));
}

inline float sum(Real x) {
    float total = 0;
    for (int half = LANES / 2; half; half /= 2)
        for (int n = 0; n < half; ++n) x[n] += x[n + half];
    total = x[0];
    return total;
}
inline float largest(Real x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int n = 0; n < half; ++n) x[n] = x[n + half] > x[n] || x[n + half] != x[n + half] ? x[n + half] : x[n];
    return x[0];
}
inline Real larger(Real a, Real b) { return (a > b) | (a != a) ? a : b; }  // what is no number stays

// e^x to 2 units in the last place (Cephes' polynomial); 0 where that is below 2^-126.
inline Real exponential(Real x) {
    const Real low = all(-87.33654f), high = all(88.3f), magic = all(12582912.0f);  // 1.5 * 2^23: rounds to whole
    const Whole below = x < low;
    x = below ? low : x;
    x = x > high ? high : x;
    const Real shifted = x * 1.44269504f + magic, n = shifted - magic;
    const Real r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Real p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Whole power = as<Whole>(shifted) - as<Whole>(magic);
    const Real found = p * as<Real>((power + 127) << 23);
    return below ? Real{} : found;
}

// ---- norms ------------------------------------------------------------------------------------

// y = x * root * weight with root = 1 / sqrt(mean(x^2) + eps), row by row.
template <class T>
void norm(const T* x, const float* weight, T* y, float* roots, int64_t rows, int64_t width, double eps, int team) {
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* in = x + row * width;
        T* out = y + row * width;
        Real squares{};
        for (int64_t n = 0; n < width; n += LANES) {
            const Real v = load(in + n, width - n);
            squares += v * v;
        }
        const float root = 1.0f / std::sqrt(sum(squares) / width + static_cast<float>(eps));
        roots[row] = root;
        for (int64_t n = 0; n < width; n += LANES)
            store(out + n, load(in + n, width - n) * root * load(weight + n, width - n), width - n);
    }
}

// With u = x * root: dx = root * (g * weight - u * mean(g * weight * u)), dweight = sum over rows of g * u.
template <class T>
void norm_gradient(const T* grad, const T* x, const float* weight, const float* roots, T* dx, float* dweight,
                   int64_t rows, int64_t width, int team) {
    std::vector<float> partial(PARTS * width);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t part = 0; part < PARTS; ++part) {
        float* own = partial.data() + part * width;
        for (int64_t row = rows * part / PARTS; row < rows * (part + 1) / PARTS; ++row) {
            const T *g = grad + row * width, *in = x + row * width;
            const float root = roots[row];
            Real both{};
            for (int64_t n = 0; n < width; n += LANES) {
                const int64_t left = width - n;
                const Real gu = load(g + n, left) * (load(in + n, left) * root);
                both += gu * load(weight + n, left);
                store(own + n, load(own + n, left) + gu, left);
            }
            const float mean = sum(both) / width;
            for (int64_t n = 0; n < width; n += LANES) {
                const int64_t left = width - n;
                const Real u = load(in + n, left) * root;
                store(dx + row * width + n, (load(g + n, left) * load(weight + n, left) - u * mean) * root, left);
            }
        }
    }
    for (int64_t n = 0; n < width; ++n) {
        dweight[n] = 0;
        for (int64_t part = 0; part < PARTS; ++part) dweight[n] += partial[part * width + n];
    }
}

// ---- gates ------------------------------------------------------------------------------------

constexpr int64_t GRAIN = 1 << 13;

template <class Body>
void pieces(int64_t count, int team, const Body& body) {
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t begin = 0; begin < count; begin += GRAIN)
        for (int64_t n = begin; n < std::min(count, begin + GRAIN); n += LANES) body(n, std::min(count, begin + GRAIN) - n);
}

template <class T>
void gated(const T* gate, const T* up, T* y, int64_t count, int team) {
    pieces(count, team, [&](int64_t n, int64_t left) {
        const Real g = load(gate + n, left);
        store(y + n, g / (exponential(-g) + 1.0f) * load(up + n, left), left);
    });
}

template <class T>
void gated_gradient(const T* grad, const T* gate, const T* up, T* dgate, T* dup, int64_t count, int team) {
    pieces(count, team, [&](int64_t n, int64_t left) {
        const Real d = load(grad + n, left), g = load(gate + n, left);
        const Real s = 1.0f / (exponential(-g) + 1.0f);
        store(dup + n, d * (g * s), left);
        store(dgate + n, d * load(up + n, left) * (s * (1.0f + g * (1.0f - s))), left);
    });
}

// ---- rotations --------------------------------------------------------------------------------

// (first, second) half of each row turned by its position's angle; strides count elements.
template <class T>
void turn(const T* x, const int64_t* from, T* y, const int64_t* to, const float* cos, const float* sin, int64_t table,
          int64_t batch, int64_t heads, int64_t length, int64_t width, double direction, int team) {
    const int64_t half = width / 2;
    const float way = static_cast<float>(direction);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t line = 0; line < batch * length; ++line) {
        const int64_t b = line / length, s = line % length;
        const float *c = cos + s * table, *t = sin + s * table;
        for (int64_t h = 0; h < heads; ++h) {
            const T* in = x + b * from[0] + h * from[1] + s * from[2];
            T* out = y + b * to[0] + h * to[1] + s * to[2];
            for (int64_t n = 0; n < half; n += LANES) {
                const int64_t left = half - n;
                const Real first = load(in + n, left), second = load(in + half + n, left);
                const Real cosine = load(c + n, left), sine = load(t + n, left) * way;
                store(out + n, first * cosine - second * sine, left);
                store(out + half + n, second * cosine + first * sine, left);
            }
        }
    }
}

// ---- softmax of attention ---------------------------------------------------------------------

// Scores (fp32, in place probabilities p) and slopes of the probabilities dp, in place p * (dp - sum(p * dp)) * scale;
// p is also written in the type of dp. Row r is position r % length; only keys up to it count, or all with a bias.
template <class T>
void attention_slope(float* scores, const T* bias, T* dp, T* p, int64_t rows, int64_t length, double scale, int team) {
    const float factor = static_cast<float>(scale);
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t position = row % length, seen = bias ? length : position + 1;
        float* s = scores + row * length;
        Real most = all(-INFINITY);
        for (int64_t n = 0; n < seen; n += LANES) {
            Real v = load(s + n, seen - n) * factor;
            if (bias) v += load(bias + position * length + n, seen - n);
            store(s + n, v, seen - n);
            if (seen - n < LANES)
                for (int64_t m = seen - n; m < LANES; ++m) v[m] = -INFINITY;
            most = larger(v, most);
        }
        const Real top = all(largest(most));
        Real total{};
        for (int64_t n = 0; n < seen; n += LANES) {
            Real e = exponential(load(s + n, seen - n) - top);
            if (seen - n < LANES)
                for (int64_t m = seen - n; m < LANES; ++m) e[m] = 0;
            store(s + n, e, seen - n);
            total += e;
        }
        const float share = 1.0f / sum(total);
        Real mixed{};
        for (int64_t n = 0; n < seen; n += LANES) {
            const Real v = load(s + n, seen - n) * share;
            mixed += v * load(dp + row * length + n, seen - n);
            store(s + n, v, seen - n);
            store(p + row * length + n, v, seen - n);
        }
        const float mean = sum(mixed);
        for (int64_t n = 0; n < seen; n += LANES) {
            T* slope = dp + row * length + n;
            store(slope, load(s + n, seen - n) * (load(slope, seen - n) - mean) * factor, seen - n);
        }
        std::memset(p + row * length + seen, 0, (length - seen) * sizeof(T));
        std::memset(dp + row * length + seen, 0, (length - seen) * sizeof(T));
    }
}

// ---- loss -------------------------------------------------------------------------------------

// -log softmax(row)[wanted] of each row, 0 for `ignored`; and share * (softmax(row) - 1 at wanted), if grad is given.
// Returns the number of targets that are no column.
template <class T>
int64_t entropy(const T* logits, const int64_t* wanted, int64_t ignored, float* losses, T* grad, int64_t rows,
                int64_t width, double share, int team) {
    int64_t wrong = 0;
#pragma omp parallel num_threads(team) reduction(+ : wrong)
    {
        std::vector<float> scratch(width + LANES);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            const T* in = logits + row * width;
            const int64_t target = wanted[row];
            losses[row] = 0;
            if (target == ignored || target < 0 || target >= width) {
                if (grad) std::memset(grad + row * width, 0, width * sizeof(T));
                wrong += target != ignored;
                continue;
            }
            Real most = all(-INFINITY);
            int64_t n = 0;
            for (; n + LANES <= width; n += LANES) most = larger(load(in + n), most);
            float top = largest(most);
            for (; n < width; n += LANES) {
                const Real v = load(in + n, width - n);
                for (int64_t m = 0; m < width - n; ++m) top = v[m] > top || v[m] != v[m] ? v[m] : top;
            }
            Real total{}, blocked{};
            for (n = 0; n < width; n += LANES) {
                Real e = exponential(load(in + n, width - n) - top);
                if (width - n < LANES)
                    for (int64_t m = width - n; m < LANES; ++m) e[m] = 0;
                store(scratch.data() + n, e);
                blocked += e;
                if (n % (64 * LANES) == 63 * LANES) {  // sums of sums lose less
                    total += blocked;
                    blocked = Real{};
                }
            }
            const float all_of_it = sum(total + blocked);
            losses[row] = std::log(all_of_it) - (load(in + target, 1)[0] - top);  // large numbers meet first, and cancel
            if (!grad) continue;
            const float factor = static_cast<float>(share) / all_of_it;
            T* out = grad + row * width;
            for (n = 0; n < width; n += LANES) store(out + n, load(scratch.data() + n) * factor, width - n);
            const Real at = all(scratch[target] * factor - static_cast<float>(share));
            store(out + target, at, 1);
        }
    }
    return wrong;
}

}  // namespace

#define FUNCTIONS(NAME, T)                                                                                             \
    extern "C" void fused_norm_##NAME(const T* x, const float* w, T* y, float* r, int64_t rows, int64_t width,         \
                                      double eps, int team) {                                                          \
        norm(x, w, y, r, rows, width, eps, team);                                                                      \
    }                                                                                                                  \
    extern "C" void fused_norm_gradient_##NAME(const T* g, const T* x, const float* w, const float* r, T* dx,          \
                                               float* dw, int64_t rows, int64_t width, int team) {                     \
        norm_gradient(g, x, w, r, dx, dw, rows, width, team);                                                          \
    }                                                                                                                  \
    extern "C" void fused_gated_##NAME(const T* g, const T* u, T* y, int64_t count, int team) {                        \
        gated(g, u, y, count, team);                                                                                   \
    }                                                                                                                  \
    extern "C" void fused_gated_gradient_##NAME(const T* d, const T* g, const T* u, T* dg, T* du, int64_t count,       \
                                                int team) {                                                            \
        gated_gradient(d, g, u, dg, du, count, team);                                                                  \
    }                                                                                                                  \
    extern "C" void fused_turn_##NAME(const T* x, const int64_t* from, T* y, const int64_t* to, const float* c,        \
                                      const float* s, int64_t table, int64_t batch, int64_t heads, int64_t length,     \
                                      int64_t width, double direction, int team) {                                     \
        turn(x, from, y, to, c, s, table, batch, heads, length, width, direction, team);                               \
    }                                                                                                                  \
    extern "C" void fused_attention_slope_##NAME(float* s, const T* bias, T* dp, T* p, int64_t rows, int64_t length,   \
                                                 double scale, int team) {                                             \
        attention_slope(s, bias, dp, p, rows, length, scale, team);                                                    \
    }                                                                                                                  \
    extern "C" int64_t fused_entropy_##NAME(const T* x, const int64_t* wanted, int64_t ignored, float* losses,         \
                                            T* grad, int64_t rows, int64_t width, double share, int team) {            \
        return entropy(x, wanted, ignored, losses, grad, rows, width, share, team);                                    \
    }

FUNCTIONS(fp32, float)
FUNCTIONS(bf16, bf16)
