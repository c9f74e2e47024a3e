// Vectors of floats, and aligned memory for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

// Otherwise compilers keep arrays of vectors in memory.
#define UNROLLED _Pragma("GCC unroll 16")
#ifdef __clang__
#define PICKED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICKED(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

namespace fastlocal {

constexpr int64_t LANES = 16;  // floats of a vector, as of AVX-512
using bfloat16 = uint16_t;     // the bits

typedef float Vector __attribute__((vector_size(4 * LANES), may_alias));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));  // unaligned
typedef bfloat16 Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int32_t Places __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES), may_alias));

constexpr std::align_val_t LINE{sizeof(Vector)};  // cache line

inline Vector read(const float* place) { return *reinterpret_cast<const Loose*>(place); }
inline Vector read(const bfloat16* place) {
  return reinterpret_cast<Vector>(__builtin_convertvector(*reinterpret_cast<const Halves*>(place), Bits) << 16);
}

inline void write(float* place, const Vector& values) { *reinterpret_cast<Loose*>(place) = values; }
inline void write(bfloat16* place, const Vector& values) {  // to the nearest, ties to even
  const Bits bits = reinterpret_cast<Bits>(values);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits known = reinterpret_cast<Bits>(values == values);
  *reinterpret_cast<Halves*>(place) = __builtin_convertvector((rounded & known) | (0x7fc0 & ~known), Halves);
}

inline Vector read_some(const float* place, int64_t count) {
  Vector values = {};
  std::memcpy(&values, place, std::min(count, LANES) * sizeof(float));
  return values;
}

inline void write_some(float* place, const Vector& values, int64_t count) {
  std::memcpy(place, &values, std::min(count, LANES) * sizeof(float));
}

// Transposes LANES vectors: four times, interleaves the first half with the second.
inline void transpose(Vector* values) {
  UNROLLED for (int64_t time = 0; time < 4; ++time) {
    Vector interleaved[LANES];
    UNROLLED for (int64_t i = 0; i < LANES / 2; ++i) {
      const Vector &a = values[i], &b = values[i + LANES / 2];
      interleaved[2 * i] = PICKED(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      interleaved[2 * i + 1] = PICKED(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    UNROLLED for (int64_t i = 0; i < LANES; ++i) values[i] = interleaved[i];
  }
}

// Memory for `count` vectors.
struct Scratch {
  Vector* const vectors;
  explicit Scratch(int64_t count) : vectors(static_cast<Vector*>(::operator new(count * sizeof(Vector), LINE))) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { ::operator delete(vectors, LINE); }
};

}  // namespace fastlocal
