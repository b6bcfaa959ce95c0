#include "core/int8.h"
