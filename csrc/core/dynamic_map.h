// The 8-bit dynamic maps (Dettmers, arXiv 2110.02861, section 2.2): 256 values over seven decades.
//
// Decade i = 0..6 holds n = 2^i (signed) or 2^(i+1) (unsigned) magnitudes: the midpoints of n equal parts
// of [0.1, 1], times 10^(i-6). With 0 and 1 these are 129 or 256 levels L[0] < L[1] < ...
//
//   unsigned map: code k has the value L[k]
//   signed map:   code 127 + k has the value L[k] for k <= 128, code 127 - k the value -L[k] for k <= 127
//                 (1 is there, -1 is not)
//
// A value in [-1, 1] gets the nearest code; half-way between two magnitudes, the smaller one. There is
// no search: the upper 16 bits of a float (sign, exponent, 7 bits of mantissa) name a cell, and a cell
// contains at most one midpoint, so an entry per cell suffices: the first level of the cell, and from
// which lower 16 bits on it is the next one.
#pragma once

#include "core/floats.h"

namespace frugalore {

constexpr int kDynamicDecades = 7;
constexpr int kDynamicSignedLevels = 129;
constexpr int kDynamicUnsignedLevels = 256;
constexpr int kDynamicSignedZero = 127;  // the code of 0 in the signed map

// Cells of 1/128 of an octave, from 2^-23 (below the first midpoint of both maps) up to 1 inclusive.
constexpr int kDynamicOctaves = 23;
constexpr int kDynamicFirstCell = (127 - kDynamicOctaves) * 128;
constexpr int kDynamicCells = kDynamicOctaves * 128 + 1;

// A cell: its first level in the low 8 bits; above them, the lower 16 bits of the first float that belongs
// to the next level (65536: none in this cell).
struct DynamicTables {
  float signed_value[256];
  float unsigned_value[256];
  uint32_t signed_cell[kDynamicCells];
  uint32_t unsigned_cell[kDynamicCells];
};

inline namespace FRUGALORE_ISA_NAMESPACE {

// ---- construction, at compile time ------------------------------------------------------------------
struct DynamicLevels {
  float at[kDynamicUnsignedLevels];
  int count;
};

constexpr DynamicLevels dynamic_levels(bool with_sign) {
  const double power[kDynamicDecades] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0};
  DynamicLevels levels{};
  levels.count = 1;  // L[0] = 0
  for (int decade = 0; decade < kDynamicDecades; ++decade) {
    const int parts = with_sign ? 1 << decade : 2 << decade;
    for (int part = 0; part < parts; ++part) {
      const double midpoint = 0.1 + 0.9 * (part + 0.5) / parts;
      levels.at[levels.count++] = static_cast<float>(midpoint * power[decade]);
    }
  }
  levels.at[levels.count++] = 1.0f;
  return levels;
}

// The sum of two floats is exact in double, so the midpoints are exact.
constexpr double dynamic_midpoint(const DynamicLevels& levels, int k) {
  return 0.5 * (static_cast<double>(levels.at[k]) + static_cast<double>(levels.at[k + 1]));
}

// Fills `cells`; false if a cell would need more than one correction.
constexpr bool fill_dynamic_cells(const DynamicLevels& levels, uint32_t* cells) {
  double octave = 1.0;
  for (int i = 0; i < kDynamicOctaves; ++i) octave *= 0.5;
  int k = 0;
  for (int cell = 0; cell < kDynamicCells; ++cell) {
    const int step = cell % 128;
    if (cell > 0 && step == 0) octave *= 2.0;
    const double begin = octave * (1.0 + step / 128.0), end = begin + octave / 128.0;
    uint32_t next_level_from = 65536;
    const int first = k;
    while (k + 1 < levels.count && dynamic_midpoint(levels, k) < end) {
      const double midpoint = dynamic_midpoint(levels, k);
      if (k != first || midpoint < begin) return false;
      next_level_from = static_cast<uint32_t>((midpoint - begin) / octave * 8388608.0) + 1;
      ++k;
    }
    cells[cell] = static_cast<uint32_t>(first) | (next_level_from << 8);
  }
  return k + 1 == levels.count;
}

constexpr DynamicTables make_dynamic_tables() {
  DynamicTables tables{};
  const DynamicLevels with_sign = dynamic_levels(true), without = dynamic_levels(false);
  for (int k = 0; k < without.count; ++k) tables.unsigned_value[k] = without.at[k];
  for (int k = 0; k < with_sign.count; ++k) tables.signed_value[kDynamicSignedZero + k] = with_sign.at[k];
  for (int k = 1; k + 1 < with_sign.count; ++k) {
    tables.signed_value[kDynamicSignedZero - k] = -with_sign.at[k];
  }
  fill_dynamic_cells(with_sign, tables.signed_cell);
  fill_dynamic_cells(without, tables.unsigned_cell);
  return tables;
}

constexpr bool dynamic_cells_are_fine_enough(bool with_sign) {
  DynamicTables scratch{};
  return fill_dynamic_cells(dynamic_levels(with_sign), scratch.signed_cell);
}

static_assert(dynamic_levels(true).count == kDynamicSignedLevels, "2^7 - 1 magnitudes, 0 and 1");
static_assert(dynamic_levels(false).count == kDynamicUnsignedLevels, "2^8 - 2 magnitudes, 0 and 1");
static_assert(dynamic_cells_are_fine_enough(true) && dynamic_cells_are_fine_enough(false),
              "one midpoint a cell at most");

// ---- use ----------------------------------------------------------------------------------------------

// The cell of |x|. Beyond 1 (and for NaN) it is the last one; never out of bounds.
FRUGALORE_HD int32_t dynamic_cell(float x) {
  const int32_t bits = static_cast<int32_t>(bit_cast<uint32_t>(x) & 0x7fffffffu);
  int32_t cell = (bits >> 16) - kDynamicFirstCell;
  cell = cell < 0 ? 0 : cell;
  return cell > kDynamicCells - 1 ? kDynamicCells - 1 : cell;
}

// The level nearest to |x|, given the entry of its cell.
FRUGALORE_HD int32_t dynamic_level(uint32_t entry, float x) {
  const int32_t low = static_cast<int32_t>(bit_cast<uint32_t>(x) & 0xffffu);
  const int32_t next_level_from = static_cast<int32_t>(entry >> 8);
  return static_cast<int32_t>(entry & 0xffu) + (low >= next_level_from ? 1 : 0);
}

// The codes of x, given the entry of its cell in the signed or the unsigned map (there x >= 0).
FRUGALORE_HD uint8_t dynamic_signed_code(uint32_t entry, float x) {
  const int32_t level = dynamic_level(entry, x);
  const int32_t below = level < kDynamicSignedZero ? level : kDynamicSignedZero;
  const bool negative = (bit_cast<uint32_t>(x) >> 31) != 0;
  return static_cast<uint8_t>(negative ? kDynamicSignedZero - below : kDynamicSignedZero + level);
}

FRUGALORE_HD uint8_t dynamic_unsigned_code(uint32_t entry, float x) {
  return static_cast<uint8_t>(dynamic_level(entry, x));
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
