// Linear map of few samples.
//
//     y = x @ weight.T + bias
//
// x: float [samples, columns]
// weight: float [rows, columns]
// bias: float [rows], or none
// y: float [samples, rows]

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "vectors.h"

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;

constexpr int64_t HEIGHT = 8;  // rows per tile: independent sums that hide the latency of one

// Transposes x [count <= LANES, columns] to [columns, LANES], with zeros for missing samples.
void transpose_samples(const float* x, int64_t count, int64_t columns, Vector* out) {
  for (int64_t column = 0; column < columns; column += LANES, out += LANES) {
    if (count == LANES && column + LANES <= columns) {
      UNROLLED for (int64_t i = 0; i < LANES; ++i) out[i] = read(x + i * columns + column);
    } else {
      for (int64_t i = 0; i < LANES; ++i)
        out[i] = i < count ? read_some(x + i * columns + column, columns - column) : Vector{};
    }
    transpose(out);
  }
}

// sums[row] = weight[row] @ x, for LANES samples
template <int64_t ROWS>
void tile(const float* weight, const Vector* x, int64_t columns, Vector* sums) {
  Vector own[ROWS];
  UNROLLED for (int64_t row = 0; row < ROWS; ++row) own[row] = Vector{};
  for (int64_t column = 0; column < columns; ++column)
    UNROLLED for (int64_t row = 0; row < ROWS; ++row) own[row] += weight[row * columns + column] * x[column];
  UNROLLED for (int64_t row = 0; row < ROWS; ++row) sums[row] = own[row];
}

// Transposes sums [rows, LANES] to y [count <= LANES, rows], and adds the bias.
void store_rows(Vector* sums, const float* bias, int64_t count, int64_t rows, float* y) {
  for (int64_t row = 0; row < rows; row += LANES, sums += LANES) {
    transpose(sums);
    const Vector added = bias ? read_some(bias + row, rows - row) : Vector{};
    for (int64_t i = 0; i < count; ++i) write_some(y + i * rows + row, sums[i] + added, rows - row);
  }
}

int64_t round_up(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

void product(Tensor x, Tensor weight, std::optional<Tensor> bias, Tensor y) {
  for (const Tensor& one : {x, weight, y})
    STD_TORCH_CHECK(one.dim() == 2 && one.scalar_type() == ScalarType::Float && one.is_contiguous(),
                    "all have to be contiguous matrices of floats");
  const int64_t samples = x.size(0), rows = weight.size(0), columns = weight.size(1);
  STD_TORCH_CHECK(x.size(1) == columns && y.size(0) == samples && y.size(1) == rows,
                  "the matrices do not fit each other");
  STD_TORCH_CHECK(!bias || (bias->numel() == rows && bias->scalar_type() == ScalarType::Float && bias->is_contiguous()),
                  "the bias has to be a row of floats that fits the weight");
  const float* values = static_cast<const float*>(x.const_data_ptr());
  const float* own = static_cast<const float*>(weight.const_data_ptr());
  const float* added = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  float* out = static_cast<float*>(y.mutable_data_ptr());
  Scratch transposed(round_up(columns)), sums(round_up(rows));
  for (int64_t sample = 0; sample < samples; sample += LANES) {
    const int64_t count = std::min(LANES, samples - sample);
    transpose_samples(values + sample * columns, count, columns, transposed.vectors);
    const int64_t whole = rows / HEIGHT * HEIGHT;
    for (int64_t row = 0; row < whole; row += HEIGHT)
      tile<HEIGHT>(own + row * columns, transposed.vectors, columns, sums.vectors + row);
    for (int64_t row = whole; row < rows; ++row)
      tile<1>(own + row * columns, transposed.vectors, columns, sums.vectors + row);
    store_rows(sums.vectors, added, count, rows, out + sample * rows);
  }
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def("product(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) y) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) { library.impl("product", TORCH_BOX(&fastlocal::product)); }
