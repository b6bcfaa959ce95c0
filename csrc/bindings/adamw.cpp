#include "bindings/families.h"

namespace frugalore {

void bind_adamw(pybind11::module_&) {}

}  // namespace frugalore
