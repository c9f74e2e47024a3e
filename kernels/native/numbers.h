// Functions of numbers, each for a float and for a vector of floats.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

#include "vectors.h"

namespace fastlocal {

enum Activation : int64_t { NONE, RELU, SILU };

inline int32_t whole(float value) { return int32_t(value); }
inline Places whole(const Vector& values) { return __builtin_convertvector(values, Places); }

// e^x within 2 units in the last place; infinite above 88.3, constant below -87.3.
template <typename Number>
inline Number exp(const Number& argument) {
  constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to an integer
  const Number zero = {}, high = zero + 88.3f, low = zero - 87.3f;
  const Number x = argument > high ? high : argument < low ? low : argument;
  const Number n = (x * 1.44269504f + rounder) - rounder;
  const Number r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Number p = zero + 1.9875691500e-4f;  // coefficients: Cephes' expf (S. L. Moshier)
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Number power = p * std::bit_cast<Number>((whole(n) + 127) << 23);
  return argument > high ? zero + std::numeric_limits<float>::infinity() : power;
}

inline Vector sigmoid(const Vector& x) { return 1.0f / (1.0f + exp(-x)); }

template <int64_t ACTIVATION>
inline Vector activate(const Vector& x) {
  if constexpr (ACTIVATION == RELU) return x < 0.0f ? Vector{} : x;  // keeps NaN
  if constexpr (ACTIVATION == SILU) return x * sigmoid(x);
  return x;
}

// Derivative of `activate`.
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
