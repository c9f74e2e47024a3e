// Random words of one client at one local step: Philox4x32-10 as kernels/philox.py has it, LANES blocks at a time.
//
// client, step: int64 []
// words: int64 [size], overwritten with words in [0, 2^32); word i is word i % 4 of block i / 4
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "vectors.h"

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using ScalarType = torch::headeronly::ScalarType;

constexpr uint64_t MULTIPLIERS[2] = {0xD2511F53, 0xCD9E8D57};
constexpr uint32_t KEY_INCREMENTS[2] = {0x9E3779B9, 0xBB67AE85};
constexpr int64_t ROUNDS = 10, WORDS = 4;

// Draws the words of LANES blocks, of which the first has the counter (first, client, step, purpose).
void blocks(int64_t first, uint32_t client, uint32_t step, uint32_t purpose, uint64_t seed, int64_t* words) {
  uint32_t x[WORDS][LANES];
  for (int64_t lane = 0; lane < LANES; ++lane) {
    x[0][lane] = uint32_t(first + lane);
    x[1][lane] = client;
    x[2][lane] = step;
    x[3][lane] = purpose;
  }
  uint32_t keys[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int64_t round = 0; round < ROUNDS; ++round) {
    for (int64_t lane = 0; lane < LANES; ++lane) {
      const uint64_t even = x[0][lane] * MULTIPLIERS[0], odd = x[2][lane] * MULTIPLIERS[1];
      x[0][lane] = uint32_t(odd >> 32) ^ x[1][lane] ^ keys[0];
      x[1][lane] = uint32_t(odd);
      x[2][lane] = uint32_t(even >> 32) ^ x[3][lane] ^ keys[1];
      x[3][lane] = uint32_t(even);
    }
    for (int64_t half = 0; half < 2; ++half) keys[half] += KEY_INCREMENTS[half];
  }
  for (int64_t lane = 0; lane < LANES; ++lane)
    for (int64_t word = 0; word < WORDS; ++word) words[lane * WORDS + word] = x[word][lane];
}

void module_words(Tensor client, Tensor step, int64_t purpose, int64_t seed, Tensor words) {
  for (const Tensor& one : {client, step, words})
    STD_TORCH_CHECK(one.scalar_type() == ScalarType::Long && one.is_contiguous(), "all have to be contiguous int64");
  STD_TORCH_CHECK(client.numel() == 1 && step.numel() == 1, "there is one client, at one step");
  const uint32_t own = *static_cast<const int64_t*>(client.const_data_ptr());
  const uint32_t number = *static_cast<const int64_t*>(step.const_data_ptr());
  int64_t* out = static_cast<int64_t*>(words.mutable_data_ptr());
  constexpr int64_t width = LANES * WORDS;
  const int64_t size = words.numel(), whole = size / width * width;
  for (int64_t i = 0; i < whole; i += width) blocks(i / WORDS, own, number, purpose, seed, out + i);
  if (whole == size) return;
  int64_t last[width];
  blocks(whole / WORDS, own, number, purpose, seed, last);
  std::copy_n(last, size - whole, out + whole);
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def("module_words(Tensor client, Tensor step, int purpose, int seed, Tensor(a!) words) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) {
  library.impl("module_words", TORCH_BOX(&fastlocal::module_words));
}
