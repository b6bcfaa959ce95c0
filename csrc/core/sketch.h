// The random test matrix of the randomised range finder: entries +1 or -1, one bit of Philox each.
// Rademacher and Gaussian sketches have the same guarantees (Halko, Martinsson & Tropp, arXiv 0909.4061;
// Clarkson & Woodruff 2009), and signs need no log or cos, so every device makes the same matrix.
#pragma once

#include "core/floats.h"
#include "core/philox.h"

namespace frugalore {

struct RademacherJob {
  void* out;  // [count] of dtype
  DType dtype;
  int64_t count;
  int64_t first_index;
  RandomStream stream;  // the "step" is the number of the refresh
};

inline namespace FRUGALORE_ISA_NAMESPACE {

FRUGALORE_HD float rademacher(uint32_t word) {
  return (word >> 31) != 0 ? -1.0f : 1.0f;
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
