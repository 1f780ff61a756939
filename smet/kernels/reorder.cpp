// The columns of a matrix in another order, behind a C interface (see reorder.py).
//
// Rows go four at a time, so that an index is read once for four of them; numbers of two bytes are written four at a
// time. On torch's own threads; nothing is computed, so any dtype of the same size is served.

#include <cstdint>
#include <cstring>

namespace {

constexpr int ROWS = 4;

template <int N>
void move(const uint16_t* x, const int32_t* order, uint16_t* y, int64_t cols) {
    int64_t j = 0;
    for (; j + 4 <= cols; j += 4) {
        const int64_t a = order[j], b = order[j + 1], c = order[j + 2], d = order[j + 3];
        for (int r = 0; r < N; ++r) {
            const uint16_t* row = x + r * cols;
            const uint64_t four = uint64_t{row[a]} | uint64_t{row[b]} << 16 | uint64_t{row[c]} << 32 | uint64_t{row[d]} << 48;
            std::memcpy(y + r * cols + j, &four, 8);
        }
    }
    for (; j < cols; ++j)
        for (int r = 0; r < N; ++r) y[r * cols + j] = x[r * cols + order[j]];
}

template <int N>
void move(const uint32_t* x, const int32_t* order, uint32_t* y, int64_t cols) {
    for (int64_t j = 0; j < cols; ++j)
        for (int r = 0; r < N; ++r) y[r * cols + j] = x[r * cols + order[j]];
}

template <class T>
void reorder(const void* from, const int32_t* order, void* to, int64_t rows, int64_t cols, int threads) {
    const T* x = static_cast<const T*>(from);
    T* y = static_cast<T*>(to);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r += ROWS) {
        if (r + ROWS <= rows) {
            move<ROWS>(x + r * cols, order, y + r * cols, cols);
        } else {
            for (int64_t i = r; i < rows; ++i) move<1>(x + i * cols, order, y + i * cols, cols);
        }
    }
}

}  // namespace

extern "C" {

void smet_reorder_16(const void* x, const int32_t* order, void* y, int64_t rows, int64_t cols, int threads) {
    reorder<uint16_t>(x, order, y, rows, cols, threads);
}

void smet_reorder_32(const void* x, const int32_t* order, void* y, int64_t rows, int64_t cols, int threads) {
    reorder<uint32_t>(x, order, y, rows, cols, threads);
}
}
