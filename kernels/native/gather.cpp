// Gather, crop, mirror and normalize images in one pass.
//
//     out[i, channel, y, x] = images[ids[i], channel, y', x'] * scale[channel] + offset[channel], rounded twice
//
// images: bytes [n, channels, height, width]
// ids: int64 [m]
// boxes: int64 [3, m], tops and lefts of crops in images with `padding` zeros around them, and whether they are
//     mirrored; or none
// scale: float [channels]
// offset: float [channels]
// out: float [m, channels, height, width]

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace fastlocal {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using ScalarType = torch::headeronly::ScalarType;

constexpr int64_t LINE = 64;              // bytes of a cache line
constexpr int64_t AHEAD = 2;              // images of a prefetch
constexpr int64_t PREFETCH_BYTES = 8192;  // of each image
constexpr int64_t GRAIN = 32768;          // minimum pixels per thread

struct Images {
  const uint8_t* bytes;
  int64_t count, channels, height, width;
  const float *scale, *offset;
};

struct Box {
  int64_t top, left;
  bool mirrored;
};

void fetch(const uint8_t* image, int64_t size) {
  for (int64_t at = 0; at < std::min(size, PREFETCH_BYTES); at += LINE) __builtin_prefetch(image + at);
}

#ifdef __clang__
#define TWO_ROUNDINGS _Pragma("clang fp contract(off)")
#else
#define TWO_ROUNDINGS
__attribute__((optimize("fp-contract=off")))
#endif
void normalise(const uint8_t* bytes, int64_t count, bool mirrored, float scale, float offset, float* out) {
  TWO_ROUNDINGS  // as two separate operations of torch
  if (mirrored)
    for (int64_t i = 0; i < count; ++i) out[i] = bytes[count - 1 - i] * scale + offset;
  else
    for (int64_t i = 0; i < count; ++i) out[i] = bytes[i] * scale + offset;
}

void plain(const Images& images, const uint8_t* image, float* out) {
  const int64_t pixels = images.height * images.width;
  for (int64_t channel = 0; channel < images.channels; ++channel, image += pixels, out += pixels)
    normalise(image, pixels, false, images.scale[channel], images.offset[channel], out);
}

// padded: [height + 2 * padding, width + 2 * padding], with zeros around the image
void crop(const Images& images, const uint8_t* image, const Box& box, int64_t padding, uint8_t* padded, float* out) {
  const int64_t width = images.width, wide = width + 2 * padding;
  for (int64_t channel = 0; channel < images.channels; ++channel) {
    for (int64_t y = 0; y < images.height; ++y, image += width)
      std::copy_n(image, width, padded + (padding + y) * wide + padding);
    for (int64_t y = 0; y < images.height; ++y, out += width)
      normalise(padded + (box.top + y) * wide + box.left, width, box.mirrored, images.scale[channel],
                images.offset[channel], out);
  }
}

void gather_images(Tensor images, Tensor ids, Optional boxes, Tensor scale, Tensor offset, Tensor out,
                   int64_t padding) {
  STD_TORCH_CHECK(images.dim() == 4 && images.scalar_type() == ScalarType::Byte && images.is_contiguous(),
                  "images have to be contiguous bytes [n, channels, height, width]");
  const int64_t count = ids.numel();
  STD_TORCH_CHECK(ids.dim() == 1 && ids.scalar_type() == ScalarType::Long && ids.is_contiguous() &&
                      (!boxes || (boxes->scalar_type() == ScalarType::Long && boxes->is_contiguous() &&
                                  boxes->dim() == 2 && boxes->size(0) == 3 && boxes->size(1) == count)),
                  "ids and boxes have to be contiguous, int64 [m] and [3, m]");
  for (const Tensor& one : {scale, offset, out})
    STD_TORCH_CHECK(one.is_contiguous() && one.scalar_type() == ScalarType::Float, "values have to be rows of floats");
  const Images all{static_cast<const uint8_t*>(images.const_data_ptr()),
                   images.size(0),
                   images.size(1),
                   images.size(2),
                   images.size(3),
                   static_cast<const float*>(scale.const_data_ptr()),
                   static_cast<const float*>(offset.const_data_ptr())};
  const int64_t size = all.channels * all.height * all.width;
  STD_TORCH_CHECK(scale.numel() == all.channels && offset.numel() == all.channels && out.numel() == count * size,
                  "scales, offsets and the output have to fit the images");
  const int64_t* id = static_cast<const int64_t*>(ids.const_data_ptr());
  const bool known = std::all_of(id, id + count, [&](int64_t one) { return one >= 0 && one < all.count; });
  STD_TORCH_CHECK(known, "an id lies beyond the images");
  float* place = static_cast<float*>(out.mutable_data_ptr());
  const int64_t* box = boxes ? static_cast<const int64_t*>(boxes->const_data_ptr()) : nullptr;
  const bool inside = !box || std::all_of(box, box + 2 * count, [&](int64_t one) { return one >= 0 && one <= 2 * padding; });
  STD_TORCH_CHECK(inside, "a crop lies beyond the padding");
  const auto run = [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> padded(box ? (all.height + 2 * padding) * (all.width + 2 * padding) : 0);
    for (int64_t i = begin; i < end; ++i) {
      if (i + AHEAD < end) fetch(all.bytes + id[i + AHEAD] * size, size);
      const uint8_t* image = all.bytes + id[i] * size;
      if (box) {
        const Box own{box[i], box[count + i], box[2 * count + i] != 0};
        crop(all, image, own, padding, padded.data(), place + i * size);
      } else {
        plain(all, image, place + i * size);
      }
    }
  };
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, GRAIN / std::max<int64_t>(size, 1)), run);
}

}  // namespace
}  // namespace fastlocal

STABLE_TORCH_LIBRARY_FRAGMENT(fastlocal_native, library) {
  library.def(
      "gather_images(Tensor images, Tensor ids, Tensor? boxes, Tensor scale, Tensor offset, Tensor(a!) out, "
      "int padding) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastlocal_native, CPU, library) {
  library.impl("gather_images", TORCH_BOX(&fastlocal::gather_images));
}
