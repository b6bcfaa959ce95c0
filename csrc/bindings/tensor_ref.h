// TensorRef: a torch tensor as C++ sees it, without torch. It borrows: it is valid during the call only.
//
// A binding takes TensorRef arguments, checks them with the functions below (each error names the
// argument and both values, and is raised before anything is written), fills a job and calls run().
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/floats.h"

namespace frugalore {

struct Device {
  bool cuda;
  int index;
  bool operator==(const Device& other) const { return cuda == other.cuda && index == other.index; }
};

struct TensorRef {
  void* data = nullptr;
  DType dtype = DType::other;
  Device device{false, 0};
  int ndim = 0;
  const int64_t* shape = nullptr;
  const int64_t* strides = nullptr;

  int64_t numel() const;
  // All dimensions but the last as rows. ndim >= 1.
  int64_t columns() const { return shape[ndim - 1]; }
  int64_t rows() const;
  bool contiguous() const;
  int64_t bytes() const;  // from the first element to the end of the last; the strides are not negative

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Reads a torch.Tensor or torch.nn.Parameter. TypeError for anything else: a tensor subclass with a
// storage of its own, or none, must be unwrapped in Python first.
TensorRef tensor_ref(pybind11::handle object);

// The stream that torch works on at present.
void* current_cuda_stream(const Device& device);

std::string dtype_name(DType dtype);
std::string device_name(const Device& device);
std::string shape_name(const TensorRef& t);
std::string number_name(double value);

// ---- checks: TypeError for a dtype, ValueError for the rest -----------------------------------------
void check_dtype(const char* name, const TensorRef& t, std::initializer_list<DType> allowed);
void check_float(const char* name, const TensorRef& t);  // float32, bfloat16 or float16
void check_contiguous(const char* name, const TensorRef& t);
void check_shape(const char* name, const TensorRef& t, std::initializer_list<int64_t> shape);
void check_numel(const char* name, const TensorRef& t, int64_t numel);
void check_same_shape(const char* name, const TensorRef& t, const char* other_name, const TensorRef& other);
void check_same_device(const char* name, const TensorRef& t, const char* other_name, const TensorRef& other);
void check_at_least_1d(const char* name, const TensorRef& t);
void check_positive(const char* name, int64_t value);
void check_finite(const char* name, double value);
void check_not_negative(const char* name, double value);  // and finite

// A tensor among the arguments of an op.
struct Place {
  const char* name;
  const TensorRef& tensor;
  bool written;
  int64_t index = -1;  // in the list `name`, if it is a list
};

// What is written shares no byte with anything else: threads would race, and results depend on their number.
void check_apart(const std::vector<Place>& places);

// [.., columns] with groups along the last dimension: the shape of scale and zero is [.., groups].
void check_grouped(const char* name, const TensorRef& t, const TensorRef& like, int64_t groups);

// dtype, device, contiguity and length in one go: the state vectors of the optimizers.
void check_vector(const char* name, const TensorRef& t, DType dtype, int64_t numel, const TensorRef& like);

}  // namespace frugalore

namespace pybind11::detail {

template <>
struct type_caster<frugalore::TensorRef> {
 public:
  PYBIND11_TYPE_CASTER(frugalore::TensorRef, const_name("torch.Tensor"));
  bool load(handle source, bool) {
    value = frugalore::tensor_ref(source);
    return true;
  }
};

}  // namespace pybind11::detail
