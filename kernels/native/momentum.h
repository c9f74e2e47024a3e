// A step of SGD with momentum.
#pragma once

#include "vectors.h"

namespace fastlocal {

struct Constants {
  float mu, decay, rate;
};

struct Step {
  Vector weight, momentum;
};

inline Step sgd_step(const Vector& weight, const Vector& momentum, const Vector& gradient, const Constants& constants) {
  const Vector velocity = constants.mu * momentum + gradient + constants.decay * weight;
  return {weight - constants.rate * velocity, velocity};
}

}  // namespace fastlocal
