// SGD of one parameter, in one pass.
//
//     momentum = mu * momentum + grad + decay * weight,   weight = weight - rate * momentum
//
// weight, momentum: float, contiguous
// grad: float of the same shape, contiguous, or of four axes in any layout, as the gradients of filters for
//     channels-last images

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "momentum.h"

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;

void update(float* weight, float* momentum, const float* grad, int64_t count, const Constants& constants) {
  const int64_t whole = count / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES) {
    const Step step = sgd_step(read(weight + i), read(momentum + i), read(grad + i), constants);
    write(momentum + i, step.momentum);
    write(weight + i, step.weight);
  }
  const int64_t rest = count - whole;
  const Step step = sgd_step(read_some(weight + whole, rest), read_some(momentum + whole, rest),
                             read_some(grad + whole, rest), constants);
  write_some(momentum + whole, step.momentum, rest);
  write_some(weight + whole, step.weight, rest);
}

// Copies a filter [channels, height, width] of any layout to contiguous floats.
void to_contiguous(const float* filter, const Tensor& grad, float* out) {
  const int64_t channels = grad.size(1), height = grad.size(2), width = grad.size(3);
  const int64_t by_channel = grad.stride(1), by_row = grad.stride(2), by_column = grad.stride(3);
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t channel = 0; channel < channels; ++channel)
        out[(channel * height + y) * width + x] = filter[channel * by_channel + y * by_row + x * by_column];
}

void sgd_update(Tensor weight, Tensor momentum, Tensor grad, double mu, double decay, double rate) {
  for (const Tensor& one : {weight, momentum, grad}) {
    STD_TORCH_CHECK(one.scalar_type() == ScalarType::Float && one.dim() == weight.dim(),
                    "weight, momentum and gradient have to be floats of one shape");
    for (int64_t axis = 0; axis < weight.dim(); ++axis)
      STD_TORCH_CHECK(one.size(axis) == weight.size(axis), "weight, momentum and gradient have to be of one shape");
  }
  STD_TORCH_CHECK(weight.is_contiguous() && momentum.is_contiguous() && (grad.is_contiguous() || grad.dim() == 4),
                  "weight and momentum have to be contiguous, and a gradient that has not four axes");
  float* own = static_cast<float*>(weight.mutable_data_ptr());
  float* velocity = static_cast<float*>(momentum.mutable_data_ptr());
  const float* gradient = static_cast<const float*>(grad.const_data_ptr());
  const Constants constants{float(mu), float(decay), float(rate)};
  if (grad.is_contiguous()) return update(own, velocity, gradient, weight.numel(), constants);
  const int64_t filters = grad.size(0), size = weight.numel() / std::max<int64_t>(filters, 1);
  Scratch scratch((size + LANES - 1) / LANES);
  float* filter = reinterpret_cast<float*>(scratch.vectors);
  for (int64_t i = 0; i < filters; ++i) {
    to_contiguous(gradient + i * grad.stride(0), grad, filter);
    update(own + i * size, velocity + i * size, filter, size, constants);
  }
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def(
      "sgd_update(Tensor(a!) weight, Tensor(b!) momentum, Tensor grad, float mu, float decay, float rate) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) {
  library.impl("sgd_update", TORCH_BOX(&fastlocal::sgd_update));
}
