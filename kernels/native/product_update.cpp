// SGD of a weight whose gradient is a product, without storing the gradient: every tile of the weight and of its
// momentum is read and written once, and the tile's product stays in registers.
//
//     momentum = mu * momentum + a.T @ b + decay * weight,   weight = weight - rate * momentum
//
// Also of the bias, whose gradient is the sum of a over samples. Without momenta mu is 0.
//
// weight, momentum: float [rows, columns], or no momentum
// a: float [samples, rows]
// b: float [samples, columns]
// bias, bias_momentum: float [rows], or none of them; the momentum goes with that of the weight

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "momentum.h"

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using ScalarType = torch::headeronly::ScalarType;

constexpr int64_t HEIGHT = 8, WIDTH = 2;  // rows and vectors of a tile: its sums fit into the registers of AVX-512
constexpr int64_t CACHED = 512;           // vectors of b that stay in a core's L1 cache

// Updates ROWS rows of PARTS vectors; a: [samples, rows], b: [samples, PARTS].
template <int64_t ROWS, int64_t PARTS>
void tile(float* weight, float* momentum, int64_t columns, const float* a, int64_t rows, const Vector* b,
          int64_t samples, const Constants constants) {
  Vector sums[ROWS][PARTS];
  UNROLLED for (int64_t row = 0; row < ROWS; ++row)
    UNROLLED for (int64_t part = 0; part < PARTS; ++part) sums[row][part] = Vector{};
  for (int64_t sample = 0; sample < samples; ++sample, a += rows, b += PARTS)
    UNROLLED for (int64_t row = 0; row < ROWS; ++row)
      UNROLLED for (int64_t part = 0; part < PARTS; ++part) sums[row][part] += a[row] * b[part];
  UNROLLED for (int64_t row = 0; row < ROWS; ++row)
    UNROLLED for (int64_t part = 0; part < PARTS; ++part) {
      const int64_t place = row * columns + part * LANES;
      const Vector before = momentum ? read(momentum + place) : Vector{};
      const Step step = sgd_step(read(weight + place), before, sums[row][part], constants);
      if (momentum) write(momentum + place, step.momentum);
      write(weight + place, step.weight);
    }
}

// Updates less than a vector of one row; b: [samples].
void edge(float* weight, float* momentum, int64_t count, const float* a, int64_t rows, const Vector* b,
          int64_t samples, const Constants& constants) {
  Vector sum = {};
  for (int64_t sample = 0; sample < samples; ++sample) sum += a[sample * rows] * b[sample];
  const Vector before = momentum ? read_some(momentum, count) : Vector{};
  const Step step = sgd_step(read_some(weight, count), before, sum, constants);
  if (momentum) write_some(momentum, step.momentum, count);
  write_some(weight, step.weight, count);
}

void update_bias(float* bias, float* momentum, const float* a, int64_t rows, int64_t samples,
                 const Constants& constants) {
  for (int64_t row = 0; row < rows; row += LANES) {
    Vector sum = {};
    for (int64_t sample = 0; sample < samples; ++sample) sum += read_some(a + sample * rows + row, rows - row);
    const Vector before = momentum ? read_some(momentum + row, rows - row) : Vector{};
    const Step step = sgd_step(read_some(bias + row, rows - row), before, sum, constants);
    if (momentum) write_some(momentum + row, step.momentum, rows - row);
    write_some(bias + row, step.weight, rows - row);
  }
}

struct Update {
  float *weight, *momentum;
  const float *a, *b;
  int64_t rows, columns, samples;
  Constants constants;
  Vector* packed;

  // Packs b [samples, columns from `begin` to `end`] as [columns / (parts * LANES), samples, parts], padded with zeros.
  void pack(int64_t begin, int64_t end, int64_t parts) {
    Vector* place = packed;
    for (int64_t column = begin; column < end; column += parts * LANES)
      for (int64_t sample = 0; sample < samples; ++sample)
        for (int64_t at = column; at < column + parts * LANES; at += LANES, ++place)
          *place = at + LANES <= columns ? read(b + sample * columns + at)
                                         : read_some(b + sample * columns + at, columns - at);
  }

  template <int64_t PARTS>
  void whole(int64_t begin, int64_t end) {
    constexpr int64_t width = PARTS * LANES;
    const int64_t step = std::max<int64_t>(1, CACHED / PARTS / std::max<int64_t>(samples, 1)) * width;
    for (; begin < end; begin += step) {
      const int64_t last = std::min(begin + step, end);
      pack(begin, last, PARTS);
      for (int64_t row = 0; row < rows; row += rows - row >= HEIGHT ? HEIGHT : 1) {
        const auto run = rows - row >= HEIGHT ? tile<HEIGHT, PARTS> : tile<1, PARTS>;
        const Vector* own = packed;
        for (int64_t column = begin; column < last; column += width, own += PARTS * samples) {
          const int64_t place = row * columns + column;
          run(weight + place, momentum ? momentum + place : nullptr, columns, a + row, rows, own, samples, constants);
        }
      }
    }
  }

  void part(int64_t begin, int64_t end) {
    if (begin == end) return;
    pack(begin, end, 1);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t place = row * columns + begin;
      edge(weight + place, momentum ? momentum + place : nullptr, end - begin, a + row, rows, packed, samples, constants);
    }
  }
};

// Number of floats before the next cache line.
int64_t to_aligned(const float* place) { return -(reinterpret_cast<uintptr_t>(place) / sizeof(float)) % LANES; }

void product_update(Tensor weight, Optional momentum, Tensor a, Tensor b, Optional bias, Optional bias_momentum,
                    double mu, double decay, double bias_decay, double rate) {
  for (const Tensor& one : {weight, momentum.value_or(weight), a, b})
    STD_TORCH_CHECK(one.dim() == 2 && one.scalar_type() == ScalarType::Float && one.is_contiguous(),
                    "all have to be contiguous matrices of floats");
  const int64_t rows = weight.size(0), columns = weight.size(1), samples = a.size(0);
  STD_TORCH_CHECK(a.size(1) == rows && b.size(0) == samples && b.size(1) == columns &&
                      (!momentum || (momentum->size(0) == rows && momentum->size(1) == columns)),
                  "the matrices do not fit each other");
  STD_TORCH_CHECK(bias_momentum.has_value() == (bias && momentum), "a bias has a momentum if the weight has one");
  STD_TORCH_CHECK(momentum || mu == 0, "mu is 0 without momenta");
  for (const Optional& one : {bias, bias_momentum})
    STD_TORCH_CHECK(!one || (one->numel() == rows && one->scalar_type() == ScalarType::Float && one->is_contiguous()),
                    "a bias has to be a row of floats that fits the weight");
  Scratch scratch(std::max(CACHED, WIDTH * samples));
  Update update{static_cast<float*>(weight.mutable_data_ptr()),
                momentum ? static_cast<float*>(momentum->mutable_data_ptr()) : nullptr,
                static_cast<const float*>(a.const_data_ptr()),
                static_cast<const float*>(b.const_data_ptr()),
                rows,
                columns,
                samples,
                {float(mu), float(decay), float(rate)},
                scratch.vectors};
  const int64_t head = std::min(columns, to_aligned(update.weight));  // vectors across two cache lines are slower
  const int64_t wide = head + (columns - head) / (WIDTH * LANES) * (WIDTH * LANES);
  const int64_t narrow = wide + (columns - wide) / LANES * LANES;
  update.part(0, head);
  update.whole<WIDTH>(head, wide);
  update.whole<1>(wide, narrow);
  update.part(narrow, columns);
  if (bias)
    update_bias(static_cast<float*>(bias->mutable_data_ptr()),
                bias_momentum ? static_cast<float*>(bias_momentum->mutable_data_ptr()) : nullptr, update.a, rows, samples, {float(mu), float(bias_decay), float(rate)});
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def(
      "product_update(Tensor(a!) weight, Tensor(b!)? momentum, Tensor a, Tensor b, Tensor(c!)? bias, "
      "Tensor(d!)? bias_momentum, float mu, float decay, float bias_decay, float rate) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) {
  library.impl("product_update", TORCH_BOX(&fastlocal::product_update));
}
