#include "bindings/tensor_ref.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "bindings/dlpack.h"

namespace py = pybind11;

namespace frugalore {
namespace {

// The two types that may reach C++, and their exchange table. Held for the life of the process.
struct TorchTypes {
  PyTypeObject* tensor;
  PyTypeObject* parameter;
  const dlpack::ExchangeApi* api;
};

TorchTypes load_torch_types() {
  const py::object tensor = py::module_::import("torch").attr("Tensor");
  const py::object parameter = py::module_::import("torch.nn").attr("Parameter");
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) {
    throw std::runtime_error(
        "frugalore needs torch >= 2.10 (torch.Tensor.__dlpack_c_exchange_api__ is missing)");
  }
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  void* table = PyCapsule_GetPointer(capsule.ptr(), dlpack::kExchangeApiCapsule);
  if (table == nullptr) throw py::error_already_set();
  const auto* api = static_cast<const dlpack::ExchangeApi*>(table);
  if (api->header.version.major != 1) {
    throw std::runtime_error("frugalore reads DLPack 1.x, this torch offers " +
                             std::to_string(api->header.version.major) + ".x");
  }
  return TorchTypes{reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr()),
                    reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr()), api};
}

// Not a plain static: importing may hand the GIL to a thread that then waits here for the import.
const TorchTypes& torch_types() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<TorchTypes> types;
  return types.call_once_and_store_result(&load_torch_types).get_stored();
}

DType dtype_of(const dlpack::DataType& type) {
  if (type.lanes != 1) return DType::other;
  switch (type.code) {
    case dlpack::kFloat:
      return type.bits == 32   ? DType::f32
             : type.bits == 16 ? DType::f16
             : type.bits == 64 ? DType::f64
                               : DType::other;
    case dlpack::kBfloat:
      return type.bits == 16 ? DType::bf16 : DType::other;
    case dlpack::kUInt:
      return type.bits == 8 ? DType::u8 : DType::other;
    case dlpack::kInt:
      return type.bits == 8    ? DType::i8
             : type.bits == 32 ? DType::i32
             : type.bits == 64 ? DType::i64
                               : DType::other;
    default:
      return DType::other;
  }
}

std::string list_name(const int64_t* values, int count) {
  std::string text = "(";
  for (int i = 0; i < count; ++i) text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  return text + (count == 1 ? ",)" : ")");
}

std::string place_name(const Place& place) {
  return place.index < 0 ? place.name : std::string(place.name) + "[" + std::to_string(place.index) + "]";
}

[[noreturn]] void fail(const char* name, const std::string& expected, const std::string& got) {
  throw py::value_error(std::string(name) + ": " + expected + " expected, got " + got);
}

}  // namespace

TensorRef tensor_ref(py::handle object) {
  const TorchTypes& types = torch_types();
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type != types.tensor && type != types.parameter) {
    throw py::type_error(std::string("a plain torch.Tensor expected, got ") + type->tp_name);
  }
  dlpack::Tensor raw;
  if (types.api->tensor_from_py_object_no_sync(object.ptr(), &raw) != 0) throw py::error_already_set();
  if (raw.device.type != dlpack::kCpu && raw.device.type != dlpack::kCuda) {
    throw py::value_error("a tensor on cpu or cuda expected, got DLPack device type " +
                          std::to_string(raw.device.type));
  }
  TensorRef ref;
  ref.data = static_cast<char*>(raw.data) + raw.byte_offset;
  ref.dtype = dtype_of(raw.dtype);
  ref.device = Device{raw.device.type == dlpack::kCuda, raw.device.index};
  ref.ndim = raw.ndim;
  ref.shape = raw.shape;
  ref.strides = raw.strides;
  if (raw.data == nullptr && ref.numel() > 0) {
    throw py::type_error("a tensor with storage expected, got one without data (fake, meta or freed)");
  }
  return ref;
}

void* current_cuda_stream(const Device& device) {
  void* stream = nullptr;
  if (torch_types().api->current_work_stream(dlpack::kCuda, device.index, &stream) != 0) {
    throw py::error_already_set();
  }
  return stream;
}

int64_t TensorRef::numel() const {
  int64_t n = 1;
  for (int i = 0; i < ndim; ++i) n *= shape[i];
  return n;
}

int64_t TensorRef::rows() const {
  int64_t n = 1;
  for (int i = 0; i + 1 < ndim; ++i) n *= shape[i];
  return n;
}

bool TensorRef::contiguous() const {
  if (strides == nullptr || numel() == 0) return true;
  int64_t expected = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

int64_t TensorRef::bytes() const {
  int64_t span = numel();
  if (span > 0 && strides != nullptr) {
    span = 1;
    for (int i = 0; i < ndim; ++i) span += (shape[i] - 1) * strides[i];
  }
  switch (dtype) {
    case DType::u8:
    case DType::i8:
      return span;
    case DType::f16:
    case DType::bf16:
      return 2 * span;
    case DType::f32:
    case DType::i32:
      return 4 * span;
    default:
      return 8 * span;
  }
}

std::string dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f16:
      return "float16";
    case DType::bf16:
      return "bfloat16";
    case DType::f64:
      return "float64";
    case DType::u8:
      return "uint8";
    case DType::i8:
      return "int8";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::other:
      return "another dtype";
  }
  return "another dtype";
}

std::string number_name(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

std::string device_name(const Device& device) {
  return device.cuda ? "cuda:" + std::to_string(device.index) : "cpu";
}

std::string shape_name(const TensorRef& t) {
  return list_name(t.shape, t.ndim);
}

void check_dtype(const char* name, const TensorRef& t, std::initializer_list<DType> allowed) {
  std::string names;
  for (DType dtype : allowed) {
    if (t.dtype == dtype) return;
    names += (names.empty() ? "" : " or ") + dtype_name(dtype);
  }
  throw py::type_error(std::string(name) + ": dtype " + names + " expected, got " + dtype_name(t.dtype));
}

void check_float(const char* name, const TensorRef& t) {
  check_dtype(name, t, {DType::f32, DType::bf16, DType::f16});
}

void check_contiguous(const char* name, const TensorRef& t) {
  if (t.contiguous()) return;
  fail(name, "a contiguous tensor",
       "strides " + list_name(t.strides, t.ndim) + " for shape " + shape_name(t));
}

void check_shape(const char* name, const TensorRef& t, std::initializer_list<int64_t> shape) {
  bool equal = t.ndim == static_cast<int>(shape.size());
  for (int i = 0; equal && i < t.ndim; ++i) equal = t.shape[i] == shape.begin()[i];
  if (!equal) {
    fail(name, "shape " + list_name(shape.begin(), static_cast<int>(shape.size())), shape_name(t));
  }
}

void check_numel(const char* name, const TensorRef& t, int64_t numel) {
  if (t.numel() != numel) {
    fail(name, std::to_string(numel) + " elements", std::to_string(t.numel()) + " in shape " + shape_name(t));
  }
}

void check_same_shape(const char* name, const TensorRef& t, const char* other_name, const TensorRef& other) {
  bool equal = t.ndim == other.ndim;
  for (int i = 0; equal && i < t.ndim; ++i) equal = t.shape[i] == other.shape[i];
  if (!equal) fail(name, std::string("the shape of ") + other_name + ", " + shape_name(other), shape_name(t));
}

void check_same_device(const char* name, const TensorRef& t, const char* other_name, const TensorRef& other) {
  if (!(t.device == other.device)) {
    fail(name, std::string("the device of ") + other_name + ", " + device_name(other.device),
         device_name(t.device));
  }
}

void check_at_least_1d(const char* name, const TensorRef& t) {
  if (t.ndim < 1) fail(name, "at least one dimension", "a scalar tensor");
}

void check_positive(const char* name, int64_t value) {
  if (value <= 0) fail(name, "a positive integer", std::to_string(value));
}

void check_finite(const char* name, double value) {
  if (!std::isfinite(value)) fail(name, "a finite number", number_name(value));
}

void check_not_negative(const char* name, double value) {
  if (!std::isfinite(value) || value < 0.0) fail(name, "a finite number >= 0", number_name(value));
}

void check_apart(const std::vector<Place>& places) {
  struct Range {
    uintptr_t begin, end;
    const Place* place;
  };
  std::vector<Range> ranges;
  ranges.reserve(places.size());
  for (const Place& place : places) {
    const auto begin = reinterpret_cast<uintptr_t>(place.tensor.data);
    const auto bytes = static_cast<uintptr_t>(place.tensor.bytes());
    if (bytes > 0) ranges.push_back(Range{begin, begin + bytes, &place});
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  // Of the ranges so far, the one that reaches farthest; and of the written ones.
  const Range* farthest = nullptr;
  const Range* farthest_written = nullptr;
  for (const Range& range : ranges) {
    const Range* before = range.place->written ? farthest : farthest_written;
    if (before != nullptr && before->end > range.begin) {
      const Place *first = before->place, *second = range.place;
      if (first > second) std::swap(first, second);  // in the order of the arguments
      fail(place_name(*second).c_str(), "memory of its own", "some of the memory of " + place_name(*first));
    }
    if (farthest == nullptr || range.end > farthest->end) farthest = &range;
    if (range.place->written && (farthest_written == nullptr || range.end > farthest_written->end)) {
      farthest_written = &range;
    }
  }
}

void check_grouped(const char* name, const TensorRef& t, const TensorRef& like, int64_t groups) {
  bool equal = t.ndim == like.ndim && t.columns() == groups;
  for (int i = 0; equal && i + 1 < t.ndim; ++i) equal = t.shape[i] == like.shape[i];
  if (!equal) {
    std::vector<int64_t> shape(like.shape, like.shape + like.ndim);
    shape.back() = groups;
    fail(name,
         "shape " + list_name(shape.data(), like.ndim) +
             " (its last dimension follows from the other arguments)",
         shape_name(t));
  }
}

void check_vector(const char* name, const TensorRef& t, DType dtype, int64_t numel, const TensorRef& like) {
  check_dtype(name, t, {dtype});
  check_numel(name, t, numel);
  check_contiguous(name, t);
  if (!(t.device == like.device)) fail(name, "device " + device_name(like.device), device_name(t.device));
}

}  // namespace frugalore
