// GroupNorm of channels-last images with residual and activation, forward and backward, image by image on one core:
// torch needs up to four passes over all images, here each image stays in the cache.
//
//     y = activation((x - mean) * rstd * weight + bias + residual),   rstd = 1 / sqrt(variance + eps)
//
// x, residual, y and their gradients: [images, channels, height, width], channels-last, float or bfloat16, with a
//     multiple of 16 channels
// weight, bias: float [channels]
// mean, rstd: float [images * groups]
//
// Arithmetic is in float.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "images.h"
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

void expect_floats(const Tensor& tensor, int64_t count) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() && tensor.numel() == count,
                  "statistics and affine parameters have to be contiguous floats of the right number");
}

Shape shape_of(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& rstd,
               int64_t groups) {
  expect_images(x);
  const Shape shape{x.size(0), x.size(2) * x.size(3), x.size(1), groups};
  STD_TORCH_CHECK(shape.channels % LANES == 0 && groups > 0 && shape.channels % groups == 0,
                  "channels have to be a multiple of 16 and of the groups");
  expect_floats(weight, shape.channels);
  expect_floats(bias, shape.channels);
  expect_floats(mean, shape.images * groups);
  expect_floats(rstd, shape.images * groups);
  return shape;
}

using Row = std::vector<float>;  // a number per channel

// Repeats each group's number for its channels.
void spread(const float* groups, Row& channels, const Shape& shape) {
  for (int64_t channel = 0; channel < shape.channels; ++channel)
    channels[channel] = groups[channel / shape.per_group()];
}

// Replaces sums by channel by means by group, at the begin of the row.
void gather(Row& sums, const Shape& shape) {
  for (int64_t group = 0; group < shape.groups; ++group) {
    float sum = 0;
    for (int64_t channel = 0; channel < shape.per_group(); ++channel) sum += sums[group * shape.per_group() + channel];
    sums[group] = sum / shape.elements();
  }
}

// term(0) + term(1) + ..., in four sums, because additions to one sum wait for each other.
template <typename Term>
Vector total(int64_t count, const Term& term) {
  Vector sums[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) UNROLLED for (int64_t part = 0; part < 4; ++part) sums[part] += term(i + part);
  for (; i < count; ++i) sums[0] += term(i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <typename T>
void statistics(const T* x, float* mean, float* rstd, Row& centers, Row& scratch, const Shape& shape, float eps) {
  for (int64_t first = 0; first < shape.channels; first += LANES)
    write(&scratch[first], total(shape.pixels, [&](int64_t pixel) { return read(x + pixel * shape.channels + first); }));
  gather(scratch, shape);
  std::copy_n(scratch.begin(), shape.groups, mean);
  spread(mean, centers, shape);
  for (int64_t first = 0; first < shape.channels; first += LANES) {
    const Vector center = read(&centers[first]);
    write(&scratch[first], total(shape.pixels, [&](int64_t pixel) {
            const Vector deviation = read(x + pixel * shape.channels + first) - center;
            return deviation * deviation;
          }));
  }
  gather(scratch, shape);
  for (int64_t group = 0; group < shape.groups; ++group) rstd[group] = 1 / std::sqrt(scratch[group] + eps);
}

template <typename T, int64_t ACTIVATION, bool RESIDUAL>
void forward(const T* x, const float* weight, const float* bias, const T* residual, T* y, float* mean, float* rstd,
             const Shape& shape, float eps) {
  Row centers(shape.channels), scales(shape.channels);
  for (int64_t image = 0; image < shape.images; ++image) {
    const int64_t begin = image * shape.pixels * shape.channels, unit = image * shape.groups;
    statistics(x + begin, mean + unit, rstd + unit, centers, scales, shape, eps);
    spread(rstd + unit, scales, shape);
    for (int64_t first = 0; first < shape.channels; first += LANES) {
      const Vector center = read(&centers[first]), shift = read(bias + first);
      const Vector scale = read(&scales[first]) * read(weight + first);
      for (int64_t pixel = 0; pixel < shape.pixels; ++pixel) {
        const int64_t place = begin + pixel * shape.channels + first;
        Vector value = (read(x + place) - center) * scale + shift;
        if constexpr (RESIDUAL) value += read(residual + place);
        write(y + place, activate<ACTIVATION>(value));
      }
    }
  }
}

// With g the gradient before the activation, h = weight * g, n = (x - mean) * rstd, and means over a group:
//     dx = rstd * (h - mean(h) - n * mean(h * n)),   dweight = sum(g * n),   dbias = sum(g),   dresidual = g
template <typename T, int64_t ACTIVATION, bool RESIDUAL>
void backward(const T* grad, const T* x, const float* weight, const float* bias, const T* residual, const float* mean,
              const float* rstd, T* dx, float* dweight, float* dbias, T* dresidual, const Shape& shape) {
  const int64_t size = shape.pixels * shape.channels;
  Row own(size), centers(shape.channels), scales(shape.channels), sums(shape.channels), with_normals(shape.channels),
      first_mean(shape.channels), second_mean(shape.channels);
  std::vector<double> weights(shape.channels), biases(shape.channels);
  for (int64_t image = 0; image < shape.images; ++image) {
    const int64_t begin = image * size, unit = image * shape.groups;
    spread(mean + unit, centers, shape);
    spread(rstd + unit, scales, shape);
    for (int64_t first = 0; first < shape.channels; first += LANES) {
      const Vector center = read(&centers[first]), scale = read(&scales[first]);
      const Vector factor = read(weight + first), shift = read(bias + first);
      Vector sum = {}, with_normal = {};
      for (int64_t place = first; place < size; place += shape.channels) {
        const Vector normal = (read(x + begin + place) - center) * scale;
        Vector value = normal * factor + shift;
        if constexpr (RESIDUAL) value += read(residual + begin + place);
        const Vector g = read(grad + begin + place) * slope<ACTIVATION>(value);
        write(&own[place], g);
        sum += g;
        with_normal += g * normal;
      }
      write(&sums[first], sum);
      write(&with_normals[first], with_normal);
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
      const Vector center = read(&centers[first]), scale = read(&scales[first]), factor = read(weight + first);
      const Vector mean_h = read(&first_mean[first]), mean_hn = read(&second_mean[first]);
      for (int64_t place = first; place < size; place += shape.channels) {
        const Vector normal = (read(x + begin + place) - center) * scale, g = read(&own[place]);
        write(dx + begin + place, scale * (factor * g - mean_h - normal * mean_hn));
        if constexpr (RESIDUAL) write(dresidual + begin + place, g);
      }
    }
  }
  std::copy(weights.begin(), weights.end(), dweight);
  std::copy(biases.begin(), biases.end(), dbias);
}

// Calls `run` with the activation as a compile-time constant.
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
