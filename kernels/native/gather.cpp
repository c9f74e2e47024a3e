// Images picked, cropped, mirrored and normalised in one pass.
//
//     out[i, channel, y, x] = images[ids[i], channel, y', x'] * scale[channel] + offset[channel], rounded twice
//
// images: bytes [n, channels, height, width]      ids: int64 [m]      scale, offset: float [channels]
// boxes: int64 [3, m] with the tops and lefts of crops in images that have `padding` zeros around them, and whether they
// are mirrored; or none      out: float [m, channels, height, width]

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

constexpr int64_t LINE = 64, AHEAD = 2, FETCHED = 8192;  // bytes of a cache line; images, and bytes of each, ahead
constexpr int64_t GRAIN = 32768;                         // pixels that are worth a thread

struct Images {
  const uint8_t* bytes;
  int64_t count, channels, height, width;
  const float *scale, *offset;
};

struct Box {
  int64_t top, left;  // of the crop in the image without its padding, negative within that
  bool mirrored;
};

void fetch(const uint8_t* image, int64_t size) {
  for (int64_t at = 0; at < std::min(size, FETCHED); at += LINE) __builtin_prefetch(image + at);
}

#ifdef __clang__
#define TWO_ROUNDINGS _Pragma("clang fp contract(off)")
#else
#define TWO_ROUNDINGS
__attribute__((optimize("fp-contract=off")))
#endif
void normalise(const uint8_t* bytes, int64_t count, float scale, float offset, float* out) {
  TWO_ROUNDINGS  // as torch's own operations do it one after the other
  for (int64_t i = 0; i < count; ++i) out[i] = bytes[i] * scale + offset;
}

void plain(const Images& images, const uint8_t* image, float* out) {
  const int64_t pixels = images.height * images.width;
  for (int64_t channel = 0; channel < images.channels; ++channel)
    normalise(image + channel * pixels, pixels, images.scale[channel], images.offset[channel], out + channel * pixels);
}

// `row` has the width of an image.
void crop(const Images& images, const uint8_t* image, const Box& box, uint8_t* row, float* out) {
  const int64_t width = images.width, height = images.height;
  const int64_t begin = std::clamp<int64_t>(-box.left, 0, width);  // columns of the crop that lie in the image
  const int64_t end = std::clamp<int64_t>(width - box.left, begin, width);
  for (int64_t channel = 0; channel < images.channels; ++channel, image += height * width)
    for (int64_t y = box.top; y < box.top + height; ++y, out += width) {
      std::fill_n(row, width, 0);
      if (y >= 0 && y < height) {
        const uint8_t* own = image + y * width + box.left;
        if (box.mirrored)
          std::reverse_copy(own + begin, own + end, row + width - end);
        else
          std::copy(own + begin, own + end, row + begin);
      }
      normalise(row, width, images.scale[channel], images.offset[channel], out);
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
  const auto run = [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> row(box ? all.width : 0);
    for (int64_t i = begin; i < end; ++i) {
      if (i + AHEAD < end) fetch(all.bytes + id[i + AHEAD] * size, size);
      const uint8_t* image = all.bytes + id[i] * size;
      if (box) {
        const Box own{box[i] - padding, box[count + i] - padding, box[2 * count + i] != 0};
        crop(all, image, own, row.data(), place + i * size);
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
