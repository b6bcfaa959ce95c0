#include "bindings/families.h"

namespace frugalore {

void bind_sketch(pybind11::module_&) {}

}  // namespace frugalore
