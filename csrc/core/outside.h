// The state-free rules: what the part of a gradient outside of a subspace of coordinates does to a weight.
#pragma once

#include <cstdint>

namespace frugalore {

// sign: signSGD, sign(0) = 0. sgd: the gradient itself. none: nothing; the gradient is not read.
enum class OutsideRule : int32_t { sign = 0, sgd = 1, none = 2 };

}  // namespace frugalore
