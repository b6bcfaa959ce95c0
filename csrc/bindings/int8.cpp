#include "bindings/families.h"

namespace frugalore {

void bind_int8(pybind11::module_&) {}

}  // namespace frugalore
