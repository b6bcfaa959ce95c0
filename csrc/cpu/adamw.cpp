#include "core/adamw.h"
