// What torch's autograd engine asks of CUDA before it runs a backward pass of tensors that say they are on cuda:0.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstring>

namespace {

const c10::Device DEVICE(c10::DeviceType::CUDA, 0);
const c10::Stream STREAM(c10::Stream::DEFAULT, DEVICE);

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
};

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const noexcept override { return DEVICE; }
  c10::Device getDevice() const noexcept override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return STREAM; }
  c10::Stream getDefaultStream(c10::Device) const noexcept override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return STREAM; }
};

const Hooks hooks;
const Guard guard;
const c10::impl::DeviceGuardImplInterface* guard_before = nullptr;
void* hooks_before = nullptr;

auto& guard_slot() { return c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)]; }

// torch keeps its hooks in a constant that nothing can replace, so their table of functions is.
void* hooks_address() {
  const at::CUDAHooksInterface& real = at::detail::getCUDAHooks();
  return const_cast<void*>(static_cast<const void*>(&real));
}

}  // namespace

extern "C" void install() {
  guard_before = guard_slot().exchange(&guard);
  const at::CUDAHooksInterface* ours = &hooks;
  std::memcpy(&hooks_before, hooks_address(), sizeof(void*));
  std::memcpy(hooks_address(), static_cast<const void*>(ours), sizeof(void*));
}

extern "C" void uninstall() {
  guard_slot().store(guard_before);
  std::memcpy(hooks_address(), &hooks_before, sizeof(void*));
}
