// Mean cross-entropy of a batch, and its gradient.
//
//     loss = mean over samples of (log of the sum of e^outputs - outputs[target])
//     grad = (softmax of outputs - 1 at the target) / samples
//
// outputs: float [samples, classes]
// grad: float [samples, classes]
// targets: int64 [samples]; targets equal to `ignored` do not count
// loss: float []

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>

#include "numbers.h"

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;

// Returns the log of the sum of e^outputs; stores e^(output - largest) in `powers`, and their sum in `sum`.
double log_sum(const float* outputs, int64_t classes, float* powers, float& sum) {
  float largest = outputs[0];
  for (int64_t i = 1; i < classes; ++i) largest = outputs[i] <= largest ? largest : outputs[i];
  for (int64_t i = 0; i < classes; ++i) powers[i] = exp(outputs[i] - largest);
  sum = 0;
  for (int64_t i = 0; i < classes; ++i) sum += powers[i];
  return double(largest) + std::log(double(sum));
}

void cross_entropy(Tensor outputs, Tensor targets, Tensor loss, Tensor grad, int64_t ignored) {
  for (const Tensor& one : {outputs, grad})
    STD_TORCH_CHECK(one.dim() == 2 && one.scalar_type() == ScalarType::Float && one.is_contiguous(),
                    "outputs and their gradient have to be contiguous matrices of floats");
  const int64_t samples = outputs.size(0), classes = outputs.size(1);
  STD_TORCH_CHECK(grad.size(0) == samples && grad.size(1) == classes && targets.dim() == 1 &&
                      targets.size(0) == samples && targets.scalar_type() == ScalarType::Long &&
                      targets.is_contiguous() && loss.numel() == 1 && loss.scalar_type() == ScalarType::Float,
                  "targets, loss and gradient have to fit the outputs");
  const float* logits = static_cast<const float*>(outputs.const_data_ptr());
  const int64_t* target = static_cast<const int64_t*>(targets.const_data_ptr());
  float* out = static_cast<float*>(grad.mutable_data_ptr());
  int64_t count = 0;
  for (int64_t sample = 0; sample < samples; ++sample) {
    if (target[sample] == ignored) continue;
    STD_TORCH_CHECK(target[sample] >= 0 && target[sample] < classes, "a target lies beyond the classes");
    ++count;
  }
  double total = 0;
  for (int64_t sample = 0; sample < samples; ++sample, logits += classes, out += classes) {
    if (target[sample] == ignored) {
      std::fill_n(out, classes, 0.0f);
      continue;
    }
    float sum;
    total += log_sum(logits, classes, out, sum) - logits[target[sample]];
    const float scale = 1.0f / (sum * float(count));
    for (int64_t i = 0; i < classes; ++i) out[i] *= scale;
    out[target[sample]] -= 1.0f / float(count);
  }
  *static_cast<float*>(loss.mutable_data_ptr()) = float(total / double(count));
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def(
      "cross_entropy(Tensor outputs, Tensor targets, Tensor(a!) loss, Tensor(b!) grad, int ignored) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) {
  library.impl("cross_entropy", TORCH_BOX(&fastlocal::cross_entropy));
}
