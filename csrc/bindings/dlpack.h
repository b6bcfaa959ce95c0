// The part of the DLPack 1.x C ABI that a consumer of tensors needs, written from the specification
// (https://dmlc.github.io/dlpack/latest/c_api.html). Field order and widths are the contract.
#pragma once

#include <cstdint>

namespace frugalore::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Version {
  uint32_t major, minor;
};

struct Device {
  int32_t type, index;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null means row-major contiguous
  uint64_t byte_offset;
};

struct ExchangeApiHeader {
  Version version;
  ExchangeApiHeader* previous;
};

// The table behind the capsule `type(tensor).__dlpack_c_exchange_api__`, named "dlpack_exchange_api".
struct ExchangeApi {
  ExchangeApiHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  int (*tensor_from_py_object_no_sync)(void* py_object, Tensor* out);  // non-owning; -1 with an error set
  int (*current_work_stream)(int32_t device_type, int32_t device_index, void** out_stream);
};

constexpr const char* kExchangeApiCapsule = "dlpack_exchange_api";

}  // namespace frugalore::dlpack
