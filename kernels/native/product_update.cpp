// SGD of a weight whose gradient is a product, without the gradient: every tile of the weight and of its momentum is
// read and written once, and the product of the tile stays in registers meanwhile.
//
//     momentum = mu * momentum + a @ b + decay * weight,   weight = weight - rate * momentum
//
// weight, momentum: float [rows, columns]        a: float [rows, samples]        b: float [samples, columns]

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "numbers.h"

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;

constexpr int64_t WIDTH = 4 * LANES, HEIGHT = 4;  // of a tile: as many sums as fit into the registers of AVX-512
constexpr int64_t CACHED = 8192;                  // floats of b that stay in a core's first cache
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

struct Constants {
  float mu, decay, rate;
};

template <int64_t ROWS>
void tile(float* weight, float* momentum, const float* a, const float* b, int64_t columns, int64_t samples,
          const Constants& constants) {
  Vector sums[ROWS][WIDTH / LANES] = {};
  for (int64_t sample = 0; sample < samples; ++sample) {
    const Vector* values = reinterpret_cast<const Vector*>(b + sample * columns);
    for (int64_t row = 0; row < ROWS; ++row)
      for (int64_t part = 0; part < WIDTH / LANES; ++part) sums[row][part] += a[row * samples + sample] * values[part];
  }
  for (int64_t row = 0; row < ROWS; ++row) {
    Vector* own = reinterpret_cast<Vector*>(weight + row * columns);
    Vector* moving = reinterpret_cast<Vector*>(momentum + row * columns);
    for (int64_t part = 0; part < WIDTH / LANES; ++part) {
      moving[part] = constants.mu * moving[part] + sums[row][part] + constants.decay * own[part];
      own[part] -= constants.rate * moving[part];
    }
  }
}

void product_update(Tensor weight, Tensor momentum, Tensor a, Tensor b, double mu, double decay, double rate) {
  for (const Tensor& one : {weight, momentum, a, b})
    STD_TORCH_CHECK(one.dim() == 2 && one.scalar_type() == ScalarType::Float && one.is_contiguous(),
                    "all have to be contiguous matrices of floats");
  const int64_t rows = weight.size(0), columns = weight.size(1), samples = a.size(1);
  STD_TORCH_CHECK(momentum.size(0) == rows && momentum.size(1) == columns && a.size(0) == rows &&
                      b.size(0) == samples && b.size(1) == columns,
                  "the matrices do not fit each other");
  float* w = static_cast<float*>(weight.mutable_data_ptr());
  float* m = static_cast<float*>(momentum.mutable_data_ptr());
  const float* x = static_cast<const float*>(a.const_data_ptr());
  const float* y = static_cast<const float*>(b.const_data_ptr());
  const Constants constants{float(mu), float(decay), float(rate)};
  const int64_t whole = columns / WIDTH * WIDTH;
  const int64_t step = std::max(WIDTH, CACHED / std::max<int64_t>(samples, 1) / WIDTH * WIDTH);
  for (int64_t begin = 0; begin < whole; begin += step) {
    const int64_t end = std::min(begin + step, whole);
    for (int64_t row = 0; row < rows; row += HEIGHT) {
      const auto run = rows - row >= HEIGHT ? tile<HEIGHT> : tile<1>;
      const int64_t last = rows - row >= HEIGHT ? row + 1 : rows;
      for (int64_t each = row; each < last; ++each)
        for (int64_t column = begin; column < end; column += WIDTH)
          run(w + each * columns + column, m + each * columns + column, x + each * samples, y + column, columns,
              samples, constants);
    }
  }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = whole; column < columns; ++column) {
      const int64_t place = row * columns + column;
      float sum = 0;
      for (int64_t sample = 0; sample < samples; ++sample) sum += x[row * samples + sample] * y[sample * columns + column];
      m[place] = constants.mu * m[place] + sum + constants.decay * w[place];
      w[place] -= constants.rate * m[place];
    }
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def(
      "product_update(Tensor(a!) weight, Tensor(b!) momentum, Tensor a, Tensor b, float mu, float decay, float rate) "
      "-> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) {
  library.impl("product_update", TORCH_BOX(&fastlocal::product_update));
}
