// The 8-bit dynamic maps (arXiv 2110.02861, section 2.2): 256 values in [-1, 1] or [0, 1], seven decades.
#pragma once

#include "core/floats.h"
