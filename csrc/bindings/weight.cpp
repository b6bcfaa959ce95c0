#include "bindings/families.h"

namespace frugalore {

void bind_weight(pybind11::module_&) {}

}  // namespace frugalore
