// Channels-last images as tensors of torch's stable ABI.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "vectors.h"

namespace fastlocal {

template <typename T>
const T* data(const torch::stable::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
const T* data(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}
template <typename T>
T* mutable_data(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
T* mutable_data(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? mutable_data<T>(*tensor) : nullptr;
}

// Images have to be like x: [images, channels, height, width], channels-last, of one dtype and shape.
inline void expect_like(const torch::stable::Tensor& tensor, const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.scalar_type() == x.scalar_type(), "all images have to be of one kind");
  int64_t stride = 1;
  for (int64_t axis : {1, 3, 2, 0}) {
    STD_TORCH_CHECK(tensor.size(axis) == x.size(axis), "all images have to be of one shape");
    STD_TORCH_CHECK(tensor.size(axis) == 1 || tensor.stride(axis) == stride, "images have to be channels-last");
    stride *= tensor.size(axis);
  }
}

inline void expect_images(const torch::stable::Tensor& x) {
  using ScalarType = torch::headeronly::ScalarType;
  const bool known = x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(known && x.dim() == 4, "images have to be [images, channels, height, width] of floats or bfloat16");
  expect_like(x, x);
}

}  // namespace fastlocal
