// Each family of ops adds its functions to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace frugalore {

void bind_int4(pybind11::module_& m);
void bind_int8(pybind11::module_& m);
void bind_weight(pybind11::module_& m);
void bind_adamw(pybind11::module_& m);
void bind_adamw8bit(pybind11::module_& m);
void bind_momentum(pybind11::module_& m);
void bind_residual(pybind11::module_& m);
void bind_split(pybind11::module_& m);
void bind_sketch(pybind11::module_& m);
void bind_gemm(pybind11::module_& m);
void bind_gram(pybind11::module_& m);
void bind_cholesky(pybind11::module_& m);
void bind_selection(pybind11::module_& m);
void bind_coordinates(pybind11::module_& m);

}  // namespace frugalore
