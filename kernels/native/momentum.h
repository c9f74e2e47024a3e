// A step of SGD with momentum.
#pragma once

#include "vectors.h"

namespace fastlocal {

struct Constants {
  float mu, decay, rate;
};

struct Moved {
  Vector weight, momentum;
};

inline Moved move(const Vector& weight, const Vector& momentum, const Vector& gradient, const Constants& constants) {
  const Vector moving = constants.mu * momentum + gradient + constants.decay * weight;
  return {weight - constants.rate * moving, moving};
}

}  // namespace fastlocal
