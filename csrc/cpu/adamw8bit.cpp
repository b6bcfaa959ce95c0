#include "core/adamw8bit.h"
