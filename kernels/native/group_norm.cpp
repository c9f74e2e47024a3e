// GroupNorm of channels-last images with residual and activation, forward and backward, an image at a time on one core:
// what torch does in up to four passes over all images happens while one of them is in the cache.
//
//     y = activation((x - mean) * rstd * weight + bias + residual),   rstd = 1 / sqrt(variance + eps)
//
// x, residual, y, their gradients: [images, channels, height, width], channels-last, float or bfloat16, and a multiple
// of 16 channels. weight, bias: float [channels]. mean, rstd: float [images * groups]. Arithmetic is in float.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "numbers.h"

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using ScalarType = torch::headeronly::ScalarType;

struct Shape {
  int64_t images, pixels, channels, groups;

  int64_t per_group() const { return channels / groups; }
  float elements() const { return float(per_group() * pixels); }
};

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
const T* data(const Optional& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
T* mutable_data(const Optional& tensor) {
  return tensor ? mutable_data<T>(*tensor) : nullptr;
}

void expect_floats(const Tensor& tensor, int64_t count) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() && tensor.numel() == count,
                  "statistics and affine parameters have to be contiguous floats of the right number");
}

void expect_like(const Tensor& tensor, const Tensor& x) {
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.scalar_type() == x.scalar_type(), "all images have to be of one kind");
  int64_t stride = 1;
  for (int64_t axis : {1, 3, 2, 0}) {
    STD_TORCH_CHECK(tensor.size(axis) == x.size(axis), "all images have to be of one shape");
    STD_TORCH_CHECK(tensor.size(axis) == 1 || tensor.stride(axis) == stride, "images have to be channels-last");
    stride *= tensor.size(axis);
  }
}

Shape shape_of(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& rstd,
               int64_t groups) {
  const bool known = x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(known && x.dim() == 4, "images have to be [images, channels, height, width] of floats or bfloat16");
  expect_like(x, x);
  const Shape shape{x.size(0), x.size(2) * x.size(3), x.size(1), groups};
  STD_TORCH_CHECK(shape.channels % LANES == 0 && groups > 0 && shape.channels % groups == 0,
                  "channels have to be a multiple of 16 and of the groups");
  expect_floats(weight, shape.channels);
  expect_floats(bias, shape.channels);
  expect_floats(mean, shape.images * groups);
  expect_floats(rstd, shape.images * groups);
  return shape;
}

// A number of every group at each of its channels.
void spread(const float* of_groups, std::vector<float>& of_channels, const Shape& shape) {
  for (int64_t channel = 0; channel < shape.channels; ++channel)
    of_channels[channel] = of_groups[channel / shape.per_group()];
}

// Mean over every group of what was summed by channel, into the first numbers of the same vector.
void gather(std::vector<float>& sums, const Shape& shape) {
  for (int64_t group = 0; group < shape.groups; ++group) {
    float sum = 0;
    for (int64_t channel = 0; channel < shape.per_group(); ++channel) sum += sums[group * shape.per_group() + channel];
    sums[group] = sum / shape.elements();
  }
}

template <typename T>
void statistics(const T* x, float* mean, float* rstd, std::vector<float>& scratch, const Shape& shape, float eps) {
  for (int64_t first = 0; first < shape.channels; first += LANES) {
    float sum[LANES] = {};
    for (int64_t pixel = 0; pixel < shape.pixels; ++pixel)
      for (int64_t lane = 0; lane < LANES; ++lane) sum[lane] += load(x[pixel * shape.channels + first + lane]);
    std::copy(sum, sum + LANES, scratch.begin() + first);
  }
  gather(scratch, shape);
  std::copy(scratch.begin(), scratch.begin() + shape.groups, mean);
  for (int64_t first = 0; first < shape.channels; first += LANES) {
    float sum[LANES] = {}, center[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) center[lane] = mean[(first + lane) / shape.per_group()];
    for (int64_t pixel = 0; pixel < shape.pixels; ++pixel)
      for (int64_t lane = 0; lane < LANES; ++lane) {
        const float far = load(x[pixel * shape.channels + first + lane]) - center[lane];
        sum[lane] += far * far;
      }
    std::copy(sum, sum + LANES, scratch.begin() + first);
  }
  gather(scratch, shape);
  for (int64_t group = 0; group < shape.groups; ++group) rstd[group] = 1 / std::sqrt(scratch[group] + eps);
}

template <typename T, int64_t ACTIVATION, bool RESIDUAL>
void forward(const T* x, const float* weight, const float* bias, const T* residual, T* y, float* mean, float* rstd,
             const Shape& shape, float eps) {
  std::vector<float> centers(shape.channels), scales(shape.channels);
  for (int64_t image = 0; image < shape.images; ++image) {
    const int64_t begin = image * shape.pixels * shape.channels, unit = image * shape.groups;
    statistics(x + begin, mean + unit, rstd + unit, scales, shape, eps);
    spread(mean + unit, centers, shape);
    spread(rstd + unit, scales, shape);
    for (int64_t first = 0; first < shape.channels; first += LANES) {
      float center[LANES], scale[LANES], shift[LANES];
      for (int64_t lane = 0; lane < LANES; ++lane) {
        center[lane] = centers[first + lane];
        scale[lane] = scales[first + lane] * weight[first + lane];
        shift[lane] = bias[first + lane];
      }
      for (int64_t pixel = 0; pixel < shape.pixels; ++pixel) {
        const int64_t place = begin + pixel * shape.channels + first;
        for (int64_t lane = 0; lane < LANES; ++lane) {
          float value = (load(x[place + lane]) - center[lane]) * scale[lane] + shift[lane];
          if (RESIDUAL) value += load(residual[place + lane]);
          store(y[place + lane], activate<ACTIVATION>(value));
        }
      }
    }
  }
}

// With g the gradient before the activation, h = weight * g, n = (x - mean) * rstd, and means over a group:
//     dx = rstd * (h - mean(h) - n * mean(h * n)),   dweight = sum(g * n),   dbias = sum(g),   dresidual = g
template <typename T, int64_t ACTIVATION, bool RESIDUAL>
void backward(const T* grad, const T* x, const float* weight, const float* bias, const T* residual, const float* mean,
              const float* rstd, T* dx, float* dweight, float* dbias, T* dresidual, const Shape& shape) {
  std::vector<float> own(shape.pixels * LANES * (shape.channels / LANES)), centers(shape.channels),
      scales(shape.channels), sums(shape.channels), with_normals(shape.channels), first_mean(shape.channels),
      second_mean(shape.channels);
  std::vector<double> weights(shape.channels), biases(shape.channels);
  for (int64_t image = 0; image < shape.images; ++image) {
    const int64_t begin = image * shape.pixels * shape.channels, unit = image * shape.groups;
    spread(mean + unit, centers, shape);
    spread(rstd + unit, scales, shape);
    for (int64_t first = 0; first < shape.channels; first += LANES) {
      float center[LANES], scale[LANES], factor[LANES], shift[LANES], sum[LANES] = {}, with_normal[LANES] = {};
      for (int64_t lane = 0; lane < LANES; ++lane) {
        center[lane] = centers[first + lane];
        scale[lane] = scales[first + lane];
        factor[lane] = weight[first + lane];
        shift[lane] = bias[first + lane];
      }
      for (int64_t pixel = 0; pixel < shape.pixels; ++pixel) {
        const int64_t place = pixel * shape.channels + first;
        for (int64_t lane = 0; lane < LANES; ++lane) {
          const float normal = (load(x[begin + place + lane]) - center[lane]) * scale[lane];
          float value = normal * factor[lane] + shift[lane];
          if (RESIDUAL) value += load(residual[begin + place + lane]);
          const float g = load(grad[begin + place + lane]) * slope<ACTIVATION>(value);
          own[place + lane] = g;
          sum[lane] += g;
          with_normal[lane] += g * normal;
        }
      }
      std::copy(sum, sum + LANES, sums.begin() + first);
      std::copy(with_normal, with_normal + LANES, with_normals.begin() + first);
    }
    for (int64_t channel = 0; channel < shape.channels; ++channel) {
      weights[channel] += with_normals[channel];
      biases[channel] += sums[channel];
      sums[channel] *= weight[channel];
      with_normals[channel] *= weight[channel];
    }
    gather(sums, shape);
    gather(with_normals, shape);
    spread(sums.data(), first_mean, shape);
    spread(with_normals.data(), second_mean, shape);
    for (int64_t first = 0; first < shape.channels; first += LANES) {
      float center[LANES], scale[LANES], factor[LANES], mean_h[LANES], mean_hn[LANES];
      for (int64_t lane = 0; lane < LANES; ++lane) {
        center[lane] = centers[first + lane];
        scale[lane] = scales[first + lane];
        factor[lane] = weight[first + lane];
        mean_h[lane] = first_mean[first + lane];
        mean_hn[lane] = second_mean[first + lane];
      }
      for (int64_t pixel = 0; pixel < shape.pixels; ++pixel) {
        const int64_t place = pixel * shape.channels + first;
        for (int64_t lane = 0; lane < LANES; ++lane) {
          const float normal = (load(x[begin + place + lane]) - center[lane]) * scale[lane], g = own[place + lane];
          store(dx[begin + place + lane], scale[lane] * (factor[lane] * g - mean_h[lane] - normal * mean_hn[lane]));
          if (RESIDUAL) store(dresidual[begin + place + lane], g);
        }
      }
    }
  }
  std::copy(weights.begin(), weights.end(), dweight);
  std::copy(biases.begin(), biases.end(), dbias);
}

// Calls `run` with the activation as a constant.
template <typename Run>
void with_activation(int64_t activation, const Run& run) {
  STD_TORCH_CHECK(activation >= NONE && activation <= SILU, "unknown activation");
  if (activation == NONE) run(std::integral_constant<int64_t, NONE>());
  if (activation == RELU) run(std::integral_constant<int64_t, RELU>());
  if (activation == SILU) run(std::integral_constant<int64_t, SILU>());
}

template <typename T, bool RESIDUAL>
void forward_of(const Tensor& x, const Tensor& weight, const Tensor& bias, const Optional& residual, const Tensor& y,
                const Tensor& mean, const Tensor& rstd, const Shape& shape, double eps, int64_t activation) {
  with_activation(activation, [&](auto constant) {
    forward<T, decltype(constant)::value, RESIDUAL>(data<T>(x), data<float>(weight), data<float>(bias),
                                                    data<T>(residual), mutable_data<T>(y), mutable_data<float>(mean),
                                                    mutable_data<float>(rstd), shape, float(eps));
  });
}

void group_norm_act(Tensor x, Tensor weight, Tensor bias, Optional residual, Tensor y, Tensor mean, Tensor rstd,
                    int64_t groups, double eps, int64_t activation) {
  const Shape shape = shape_of(x, weight, bias, mean, rstd, groups);
  expect_like(y, x);
  if (residual) expect_like(*residual, x);
  const bool wide = x.scalar_type() == ScalarType::Float;
  const auto run = residual ? wide ? forward_of<float, true> : forward_of<bfloat16, true>
                            : wide ? forward_of<float, false> : forward_of<bfloat16, false>;
  run(x, weight, bias, residual, y, mean, rstd, shape, eps, activation);
}

template <typename T, bool RESIDUAL>
void backward_of(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& bias,
                 const Optional& residual, const Tensor& mean, const Tensor& rstd, const Tensor& dx,
                 const Tensor& dweight, const Tensor& dbias, const Optional& dresidual, const Shape& shape,
                 int64_t activation) {
  with_activation(activation, [&](auto constant) {
    backward<T, decltype(constant)::value, RESIDUAL>(
        data<T>(grad), data<T>(x), data<float>(weight), data<float>(bias), data<T>(residual), data<float>(mean),
        data<float>(rstd), mutable_data<T>(dx), mutable_data<float>(dweight), mutable_data<float>(dbias),
        mutable_data<T>(dresidual), shape);
  });
}

void group_norm_act_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Optional residual, Tensor mean,
                             Tensor rstd, Tensor dx, Tensor dweight, Tensor dbias, Optional dresidual, int64_t groups,
                             int64_t activation) {
  const Shape shape = shape_of(x, weight, bias, mean, rstd, groups);
  expect_like(grad, x);
  expect_like(dx, x);
  expect_floats(dweight, shape.channels);
  expect_floats(dbias, shape.channels);
  STD_TORCH_CHECK(bool(residual) == bool(dresidual), "a residual has a gradient, and nothing else");
  if (residual) expect_like(*residual, x), expect_like(*dresidual, x);
  const bool wide = x.scalar_type() == ScalarType::Float;
  const auto run = residual ? wide ? backward_of<float, true> : backward_of<bfloat16, true>
                            : wide ? backward_of<float, false> : backward_of<bfloat16, false>;
  run(grad, x, weight, bias, residual, mean, rstd, dx, dweight, dbias, dresidual, shape, activation);
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def(
      "group_norm_act(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor(a!) y, Tensor(b!) mean, "
      "Tensor(c!) rstd, int groups, float eps, int activation) -> ()");
  library.def(
      "group_norm_act_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor mean, "
      "Tensor rstd, Tensor(a!) dx, Tensor(b!) dweight, Tensor(c!) dbias, Tensor(d!)? dresidual, int groups, "
      "int activation) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) {
  library.impl("group_norm_act", TORCH_BOX(&fastlocal::group_norm_act));
  library.impl("group_norm_act_backward", TORCH_BOX(&fastlocal::group_norm_act_backward));
}
