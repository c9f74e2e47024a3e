// Numbers as the C++ sources beside this one load, store and compute them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fastlocal {

constexpr int64_t LANES = 16;  // channels that are computed at a time: of floats, a vector of AVX-512
using bfloat16 = uint16_t;     // its bits, so that loops over them become vector instructions

enum Activation : int64_t { NONE, RELU, SILU };

inline float load(float value) { return value; }
inline float load(bfloat16 bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

inline void store(float& place, float value) { place = value; }
inline void store(bfloat16& place, float value) {  // to the nearest, ties to even
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  place = value == value ? bfloat16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : bfloat16(0x7fc0);
}

// e^x within 2 units in the last place; above 88.3 infinite, below -87.3 what it is there.
inline float exp(float given) {
  const float x = given > 88.3f ? 88.3f : given < -87.3f ? -87.3f : given;
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;  // coefficients: Cephes' expf (S. L. Moshier)
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = p * std::bit_cast<float>((int32_t(n) + 127) << 23);
  return given > 88.3f ? std::numeric_limits<float>::infinity() : power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

template <int64_t ACTIVATION>
inline float activate(float x) {
  if constexpr (ACTIVATION == RELU) return x < 0 ? 0 : x;  // what is no number stays so
  if constexpr (ACTIVATION == SILU) return x * sigmoid(x);
  return x;
}

// The derivative of `activate`.
template <int64_t ACTIVATION>
inline float slope(float x) {
  if constexpr (ACTIVATION == RELU) return x <= 0 ? 0 : 1;
  if constexpr (ACTIVATION == SILU) {
    const float gate = sigmoid(x);
    return gate * (1 + x * (1 - gate));
  }
  return 1;
}

}  // namespace fastlocal
