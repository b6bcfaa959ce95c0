#include "bindings/families.h"

namespace frugalore {

void bind_adamw8bit(pybind11::module_&) {}

}  // namespace frugalore
