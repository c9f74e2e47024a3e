// Maximum over windows of channels-last images, with the ReLU before or after it, and back: torch takes a pass of its own
// for each of them, and up to three more to change the memory layout.
//
//     y = activation(maximum of x over a window),   dx = sum over windows of dy where x was taken
//
// x, dx: [images, channels, height, width], channels-last, float or bfloat16
// y, dy: [images, channels, rows, columns], of any strides
// places: uint8 [images * rows * columns * channels]: the position in the window that was taken, and CLOSED if the ReLU
//     lets no gradient pass
// kernel, stride, padding: of both axes; padding is never taken

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <vector>

#include "images.h"
#include "numbers.h"

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;
using Pair = std::vector<int64_t>;

typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

constexpr uint8_t CLOSED = 128;

// Strides of y or dy.
struct Strides {
  int64_t image, channel, row, column;
};

struct Shape {
  int64_t images, channels, height, width, rows, columns;
  Pair kernel, stride, padding;

  int64_t pixels() const { return height * width * channels; }
};

// The part of a window that lies within an axis: from `begin` to `end`, from position `first` of the window on.
struct Range {
  int64_t begin, end, first;
};

Range range(int64_t place, int64_t axis, int64_t size, const Shape& shape) {
  const int64_t start = place * shape.stride[axis] - shape.padding[axis];
  const int64_t begin = std::max<int64_t>(start, 0);
  return {begin, std::min(start + shape.kernel[axis], size), begin - start};
}

// Calls run(place in the image, position in the window) for every pixel of a window.
template <typename Run>
void for_pixels(const Range& ys, const Range& xs, const Shape& shape, const Run& run) {
  for (int64_t y = ys.begin; y < ys.end; ++y) {
    int64_t position = (ys.first + y - ys.begin) * shape.kernel[1] + xs.first;
    for (int64_t x = xs.begin; x < xs.end; ++x, ++position) run((y * shape.width + x) * shape.channels, position);
  }
}

// Reads a vector, or what is left of it before `end`.
template <typename T>
Vector read_before(const T* place, const T* end) {
  if (place + LANES <= end) return read(place);
  T values[LANES] = {};
  std::copy(place, end, values);
  return read(values);
}

template <typename T>
Vector read_strided(const T* place, int64_t stride) {
  if (stride == 1) return read(place);
  T values[LANES];
  UNROLLED for (int64_t lane = 0; lane < LANES; ++lane) values[lane] = place[lane * stride];
  return read(values);
}

template <typename T>
void write_strided(T* place, const Vector& vector, int64_t stride, int64_t count) {
  if (stride == 1 && count == LANES) return write(place, vector);
  T values[LANES];
  write(values, vector);
  for (int64_t lane = 0; lane < count; ++lane) place[lane * stride] = values[lane];
}

template <typename T, int64_t ACTIVATION>
void forward(const T* x, T* y, uint8_t* places, const Strides& strides, const Shape& shape) {
  const T* end = x + shape.images * shape.pixels();
  for (int64_t image = 0; image < shape.images; ++image, x += shape.pixels())
    for (int64_t row = 0; row < shape.rows; ++row)
      for (int64_t column = 0; column < shape.columns; ++column) {
        const Range ys = range(row, 0, shape.height, shape), xs = range(column, 1, shape.width, shape);
        T* out = y + image * strides.image + row * strides.row + column * strides.column;
        for (int64_t first = 0; first < shape.channels; first += LANES) {
          const int64_t count = std::min(LANES, shape.channels - first);
          Vector best = Vector{} - std::numeric_limits<float>::infinity();
          Places where = Places{} + int32_t(ys.first * shape.kernel[1] + xs.first);
          for_pixels(ys, xs, shape, [&](int64_t place, int64_t position) {
            const Vector value = read_before(x + place + first, end);
            const Places taken = (value > best) | (value != value);
            best = taken ? value : best;
            where = taken ? Places{} + int32_t(position) : where;
          });
          if constexpr (ACTIVATION == RELU) where |= best <= 0.0f ? Places{} + CLOSED : Places{};
          write_strided(out + first * strides.channel, activate<ACTIVATION>(best), strides.channel, count);
          const Bytes bytes = __builtin_convertvector(where, Bytes);
          std::memcpy(places, &bytes, count);
          places += count;
        }
      }
}

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) { return std::bit_cast<float>(uint32_t(value) << 16); }
inline void add(float& place, float value) { place += value; }
inline void add(bfloat16& place, float value) {
  bfloat16 sums[LANES];
  write(sums, Vector{} + (to_float(place) + value));
  place = sums[0];
}

template <typename T>
void backward(const T* dy, const uint8_t* places, T* dx, const Strides& strides, const Shape& shape) {
  const int64_t whole = shape.channels / LANES * LANES;
  std::vector<int64_t> offsets;  // by position, from the first pixel of a window
  for (int64_t y = 0; y < shape.kernel[0]; ++y)
    for (int64_t x = 0; x < shape.kernel[1]; ++x) offsets.push_back((y * shape.width + x) * shape.channels);
  for (int64_t image = 0; image < shape.images; ++image, dx += shape.pixels()) {
    std::fill_n(dx, shape.pixels(), T(0));
    for (int64_t row = 0; row < shape.rows; ++row)
      for (int64_t column = 0; column < shape.columns; ++column, places += shape.channels) {
        const Range ys = range(row, 0, shape.height, shape), xs = range(column, 1, shape.width, shape);
        const T* in = dy + image * strides.image + row * strides.row + column * strides.column;
        for (int64_t first = 0; first < whole; first += LANES) {
          const Vector grad = read_strided(in + first * strides.channel, strides.channel);
          const Places where = __builtin_convertvector(*reinterpret_cast<const Bytes*>(places + first), Places);
          for_pixels(ys, xs, shape, [&](int64_t place, int64_t position) {
            T* own = dx + place + first;
            write(own, read(own) + (where == int32_t(position) ? grad : Vector{}));
          });
        }
        const int64_t y = ys.begin - ys.first, x = xs.begin - xs.first;
        T* own = dx + (y * shape.width + x) * shape.channels;
        for (int64_t channel = whole; channel < shape.channels; ++channel) {
          const uint8_t place = places[channel];
          const uint32_t open = place < CLOSED ? -1 : 0;  // a mask, because a branch would be taken at random
          const uint32_t grad = std::bit_cast<uint32_t>(to_float(in[channel * strides.channel])) & open;
          add(own[offsets[place % CLOSED] + channel], std::bit_cast<float>(grad));
        }
      }
  }
}

Shape shape_of(const Tensor& x, const Tensor& y, const Tensor& places, Pair kernel, Pair stride, Pair padding) {
  expect_images(x);
  STD_TORCH_CHECK(y.dim() == 4 && y.scalar_type() == x.scalar_type() && y.size(0) == x.size(0) && y.size(1) == x.size(1),
                  "images and their maxima have to be of one kind");
  STD_TORCH_CHECK(places.scalar_type() == ScalarType::Byte && places.is_contiguous() && places.numel() == y.numel(),
                  "there has to be a contiguous byte of each maximum");
  for (const Pair* one : {&kernel, &stride, &padding})
    STD_TORCH_CHECK(one->size() == 2, "kernel, stride and padding have to be of two axes");
  for (int64_t axis : {0, 1}) {
    STD_TORCH_CHECK(kernel[axis] > 0 && stride[axis] > 0 && padding[axis] >= 0 && 2 * padding[axis] <= kernel[axis],
                    "the padding has to be half of the kernel at most");
    STD_TORCH_CHECK(y.size(2 + axis) == 0 || (y.size(2 + axis) - 1) * stride[axis] - padding[axis] < x.size(2 + axis),
                    "every window has to begin within its image");
  }
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= CLOSED, "a window has to have 128 pixels at most");
  return {x.size(0), x.size(1), x.size(2), x.size(3), y.size(2), y.size(3), kernel, stride, padding};
}

Strides strides_of(const Tensor& y) { return {y.stride(0), y.stride(1), y.stride(2), y.stride(3)}; }

template <typename T>
void forward_of(const Tensor& x, const Tensor& y, const Tensor& places, const Shape& shape, int64_t activation) {
  const auto run = activation == RELU ? forward<T, RELU> : forward<T, NONE>;
  run(data<T>(x), mutable_data<T>(y), mutable_data<uint8_t>(places), strides_of(y), shape);
}

void max_pool_act(Tensor x, Tensor y, Tensor places, Pair kernel, Pair stride, Pair padding, int64_t activation) {
  const Shape shape = shape_of(x, y, places, kernel, stride, padding);
  STD_TORCH_CHECK(activation == NONE || activation == RELU, "unknown activation");
  const auto run = x.scalar_type() == ScalarType::Float ? forward_of<float> : forward_of<bfloat16>;
  run(x, y, places, shape, activation);
}

void max_pool_act_backward(Tensor grad, Tensor places, Tensor dx, Pair kernel, Pair stride, Pair padding) {
  const Shape shape = shape_of(dx, grad, places, kernel, stride, padding);
  if (dx.scalar_type() == ScalarType::Float)
    backward(data<float>(grad), data<uint8_t>(places), mutable_data<float>(dx), strides_of(grad), shape);
  else
    backward(data<bfloat16>(grad), data<uint8_t>(places), mutable_data<bfloat16>(dx), strides_of(grad), shape);
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def(
      "max_pool_act(Tensor x, Tensor(a!) y, Tensor(b!) places, int[] kernel, int[] stride, int[] padding, "
      "int activation) -> ()");
  library.def(
      "max_pool_act_backward(Tensor grad, Tensor places, Tensor(a!) dx, int[] kernel, int[] stride, int[] padding) "
      "-> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) {
  library.impl("max_pool_act", TORCH_BOX(&fastlocal::max_pool_act));
  library.impl("max_pool_act_backward", TORCH_BOX(&fastlocal::max_pool_act_backward));
}
