#include "core/sketch.h"
