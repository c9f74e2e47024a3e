// Sum over clients, in order.
//
//     total = total + weight * params[0] + weight * params[1] + ..., in float64
//
// params: float [clients, n_params], rows with any stride
// total: double [n_params]

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;

constexpr int64_t COLUMNS = 2048;  // per block: its sums stay in a core's L1 cache

void client_sum(Tensor params, Tensor total, double weight) {
  STD_TORCH_CHECK(params.dim() == 2 && params.scalar_type() == ScalarType::Float &&
                      (params.stride(1) == 1 || params.size(1) <= 1),
                  "params have to be rows of floats");
  const int64_t clients = params.size(0), count = params.size(1), stride = params.stride(0);
  STD_TORCH_CHECK(total.dim() == 1 && total.scalar_type() == ScalarType::Double && total.is_contiguous() &&
                      total.size(0) == count,
                  "the total has to be a row of doubles that fits the parameters");
  const float* first = static_cast<const float*>(params.const_data_ptr());
  double* sums = static_cast<double*>(total.mutable_data_ptr());
  const auto run = [&](int64_t begin, int64_t end) {
    double own[COLUMNS];
    for (; begin < end; begin += COLUMNS) {
      const int64_t some = std::min(COLUMNS, end - begin);
      std::copy_n(sums + begin, some, own);
      const float* row = first + begin;
      for (int64_t client = 0; client < clients; ++client, row += stride)
        for (int64_t column = 0; column < some; ++column) own[column] += weight * row[column];
      std::copy_n(own, some, sums + begin);
    }
  };
  torch::stable::parallel_for(0, count, COLUMNS, run);
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def("client_sum(Tensor params, Tensor(a!) total, float weight) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) {
  library.impl("client_sum", TORCH_BOX(&fastlocal::client_sum));
}
