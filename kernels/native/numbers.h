// What is computed of numbers, each of a float or of all floats of a vector.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "vectors.h"

namespace fastlocal {

enum Activation : int64_t { NONE, RELU, SILU };

inline int32_t whole(float value) { return int32_t(value); }
inline Places whole(const Vector& values) { return __builtin_convertvector(values, Places); }

// e^x within 2 units in the last place; above 88.3 infinite, below -87.3 what it is there.
template <typename Number>
inline Number exp(const Number& given) {
  constexpr float half_away = 12582912.0f;  // 1.5 * 2^23: a sum with it has no fractions
  const Number zero = {}, most = zero + 88.3f, least = zero - 87.3f;
  const Number x = given > most ? most : given < least ? least : given;
  const Number n = (x * 1.44269504f + half_away) - half_away;
  const Number r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Number p = zero + 1.9875691500e-4f;  // coefficients: Cephes' expf (S. L. Moshier)
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Number power = p * std::bit_cast<Number>((whole(n) + 127) << 23);
  return given > most ? zero + std::numeric_limits<float>::infinity() : power;
}

inline Vector sigmoid(const Vector& x) { return 1.0f / (1.0f + exp(-x)); }

template <int64_t ACTIVATION>
inline Vector activate(const Vector& x) {
  if constexpr (ACTIVATION == RELU) return x < 0.0f ? Vector{} : x;  // what is no number stays so
  if constexpr (ACTIVATION == SILU) return x * sigmoid(x);
  return x;
}

// The derivative of `activate`.
template <int64_t ACTIVATION>
inline Vector slope(const Vector& x) {
  const Vector one = Vector{} + 1.0f;
  if constexpr (ACTIVATION == RELU) return x <= 0.0f ? Vector{} : one;
  if constexpr (ACTIVATION == SILU) {
    const Vector gate = sigmoid(x);
    return gate * (1.0f + x * (1.0f - gate));
  }
  return one;
}

}  // namespace fastlocal
