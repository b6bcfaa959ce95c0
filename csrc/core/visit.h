// From a dtype tag to a C++ type: visit_float(dtype, pointer, [&](auto* typed) { ... }). Host code.
// The binding has checked that the dtype is float32, bfloat16 or float16.
#pragma once

#include <type_traits>

#include "core/floats.h"

namespace frugalore {
inline namespace FRUGALORE_ISA_NAMESPACE {

template <class Body>
inline auto visit_float(DType dtype, void* pointer, Body&& body) {
  switch (dtype) {
    case DType::bf16:
      return body(static_cast<bf16*>(pointer));
    case DType::f16:
      return body(static_cast<f16*>(pointer));
    default:
      return body(static_cast<float*>(pointer));
  }
}

template <class Body>
inline auto visit_float(DType dtype, const void* pointer, Body&& body) {
  switch (dtype) {
    case DType::bf16:
      return body(static_cast<const bf16*>(pointer));
    case DType::f16:
      return body(static_cast<const f16*>(pointer));
    default:
      return body(static_cast<const float*>(pointer));
  }
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
