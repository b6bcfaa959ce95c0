// The Python module frugalore._C. It imports no torch header and links no torch library.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>

#include "bindings/families.h"
#include "bindings/run.h"
#include "cpu/isa.h"

#ifndef FRUGALORE_VERSION
#define FRUGALORE_VERSION "development"
#endif
#if defined(__clang__)  // names itself in __VERSION__
#define FRUGALORE_COMPILER __VERSION__
#else
#define FRUGALORE_COMPILER "gcc " __VERSION__
#endif

namespace py = pybind11;

namespace frugalore {

int torch_thread_count() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> get_num_threads;
  const auto load = [] { return py::object(py::module_::import("torch").attr("get_num_threads")); };
  return get_num_threads.call_once_and_store_result(load).get_stored()().cast<int>();
}

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = FRUGALORE_VERSION;
  info["compiler"] = FRUGALORE_COMPILER;
  info["cuda"] = FRUGALORE_CUDA_NOTE;
  info["cpu_isa"] = cpu::isa_name(cpu::active_isa());
  info["cpu_vendor"] = cpu::cpu_vendor();
  return info;
}

}  // namespace
}  // namespace frugalore

PYBIND11_MODULE(_C, m) {
  using namespace frugalore;
  m.doc() = "frugalore's C++/CUDA kernels. Use frugalore.ops; this module checks, but documents nothing.";
#if FRUGALORE_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
  m.def("build_info", &build_info);
  m.def("force_isa", [](const std::string& name) { cpu::force_isa(name.c_str()); });
  m.def("active_isa", [] { return cpu::isa_name(cpu::active_isa()); });
  bind_int4(m);
  bind_int8(m);
  bind_weight(m);
  bind_adamw(m);
  bind_adamw8bit(m);
  bind_momentum(m);
  bind_residual(m);
  bind_split(m);
  bind_sketch(m);
  bind_gemm(m);
  bind_gram(m);
  bind_cholesky(m);
  bind_selection(m);
  bind_coordinates(m);
}
