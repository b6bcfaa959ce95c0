// Which elements of a matrix are inside the subspace, where the subspace is spanned by coordinates (FRUGAL,
// arXiv 2411.07837, section 4), and where their state is stored.
//
//   none, all   no element, every element; slot = element index
//   columns     the chosen columns: state [rows, k] row-major, the columns in ascending order
//   rows        the chosen rows: state [k, columns] row-major, the rows in ascending order
//   randk       single elements, drawn anew from the random stream wherever they are needed: nothing is
//   stored
//
// randk. A row is cut into tiles of 256 columns, the last of which may be short. With fraction = density 2^32
// and S(i) = floor(i fraction / 2^32), the tile of the elements [a, b) (row-major indices) has S(b) - S(a)
// chosen elements, whose slots begin at S(a); so a matrix has S(rows columns) of them. Element a + i is
// chosen if the keyed bijection f of {0 .. b-a-1} has f(i) < S(b) - S(a), and its slot is S(a) + f(i). The
// four words of Philox counter a / 4 ... of the stream (quad index = tile ordinal) are the key of f.
//
// Columns and rows are chosen by `select`: of the random words of 0 .. n-1, the k smallest, the lower index
// first where words are equal. The word of rank k is found by its digits of 8 bits, the highest first, from
// counts of the words that agree with it so far; so nothing is stored but the counts.
#pragma once

#include "core/groups.h"
#include "core/philox.h"

namespace frugalore {

enum class SelectionKind : int32_t { none = 0, all = 1, columns = 2, rows = 3, randk = 4 };

constexpr int64_t kSelectionTile = 256;

struct Selection {
  SelectionKind kind;
  const int32_t* below;   // columns, rows: [length + 1], below[i] = how many of 0 .. i-1 are chosen
  const int32_t* chosen;  // columns, rows: [k], ascending
  int64_t count;          // k, for columns and rows
  uint64_t fraction;      // randk: density 2^32, 0 .. 2^32
  RandomStream stream;    // randk: purpose selection; the "step" is the number of the period
};

struct SelectJob {
  int32_t* below;   // [count + 1]
  int32_t* chosen;  // [chosen_count]
  int64_t count;    // 0 .. 2^31 - 2
  int64_t chosen_count;
  RandomStream stream;  // purpose selection; the "step" is the number of the period
};

// Chosen are the words below `word`, and of those equal to it the first `ties`. During the search `word`
// holds the digits that are known and `ties` the rank that is left among the words which agree with them.
struct SelectThreshold {
  uint32_t word;
  uint32_t ties;
};

constexpr int kSelectDigits = 4, kSelectBins = 256;

inline namespace FRUGALORE_ISA_NAMESPACE {

// floor(i fraction / 2^32) for i >= 0, without overflow.
FRUGALORE_HD int64_t randk_before(int64_t i, uint64_t fraction) {
  const uint64_t high = static_cast<uint64_t>(i) >> 32, low = static_cast<uint64_t>(i) & 0xffffffffu;
  return static_cast<int64_t>(high * fraction + ((low * fraction) >> 32));
}

// The key of one tile's bijection: of 0 .. length-1, by cycle walking within the next power of two.
struct RandkTile {
  int32_t length;
  int32_t chosen;      // elements with rank below this are inside
  int64_t first_slot;  // of the rank 0
  uint32_t mask, shift;
  uint32_t add0, multiply0, multiply1, multiply2, add1;
};

// The tile that begins at `column` (a multiple of 256) of `row`.
FRUGALORE_HD RandkTile randk_tile(const Selection& selection, int64_t columns, int64_t row, int64_t column) {
  const int64_t begin = row * columns + column, rest = columns - column;
  const int64_t length = rest < kSelectionTile ? rest : kSelectionTile;
  const int64_t before = randk_before(begin, selection.fraction);
  const uint64_t ordinal =
      static_cast<uint64_t>(row * ceil_div(columns, kSelectionTile) + column / kSelectionTile);
  const PhiloxWords key = philox4x32(selection.stream, ordinal);
  uint32_t bits = 1;
  while ((int64_t{1} << bits) < length) ++bits;
  return RandkTile{static_cast<int32_t>(length),
                   static_cast<int32_t>(randk_before(begin + length, selection.fraction) - before),
                   before,
                   (1u << bits) - 1u,
                   bits > 1 ? bits / 2 : 1,
                   key.word[0],
                   key.word[1] | 1u,
                   key.word[2] | 1u,
                   key.word[3] | 1u,
                   key.word[0] >> 16};
}

// One round trip through the power of two: a bijection of 0 .. mask.
FRUGALORE_HD uint32_t randk_mix(const RandkTile& tile, uint32_t x) {
  x = (x + tile.add0) & tile.mask;
  x = (x * tile.multiply0) & tile.mask;
  x ^= x >> tile.shift;
  x = (x * tile.multiply1) & tile.mask;
  x ^= x >> tile.shift;
  x = (x * tile.multiply2) & tile.mask;
  x ^= x >> tile.shift;
  return (x + tile.add1) & tile.mask;
}

// f(i): the rank of element i of the tile.
FRUGALORE_HD int32_t randk_rank(const RandkTile& tile, int32_t i) {
  uint32_t x = randk_mix(tile, static_cast<uint32_t>(i));
  while (x >= static_cast<uint32_t>(tile.length)) x = randk_mix(tile, x);
  return static_cast<int32_t>(x);
}

// The place of digit 0 .. 3 in a word.
FRUGALORE_HD int select_shift(int digit) {
  return 24 - 8 * digit;
}

// Whether a word has the digits before `digit` that are known.
FRUGALORE_HD bool select_agrees(const SelectThreshold& threshold, int digit, uint32_t word) {
  return (static_cast<uint64_t>(word ^ threshold.word) >> (select_shift(digit) + 8)) == 0;
}

FRUGALORE_HD uint32_t select_digit(int digit, uint32_t word) {
  return (word >> select_shift(digit)) & (kSelectBins - 1u);
}

// One more digit; counts[b]: how many of the words that agree have the digit b.
FRUGALORE_HD void select_refine(SelectThreshold& threshold, int digit, const uint32_t* counts) {
  uint32_t bin = 0;
  while (bin + 1 < kSelectBins && counts[bin] < threshold.ties) threshold.ties -= counts[bin++];
  threshold.word |= bin << select_shift(digit);
}

// How many are chosen of the indices before one, of whose words `less` are below the threshold and `equal`
// are equal to it.
FRUGALORE_HD uint32_t selected_before(const SelectThreshold& threshold, uint32_t less, uint32_t equal) {
  return less + (equal < threshold.ties ? equal : threshold.ties);
}

// The way back, for who wants the elements in the order of their ranks: odd multipliers have inverses modulo
// the power of two, which is at most 2^8.
struct RandkInverse {
  uint32_t multiply0, multiply1, multiply2;
};

// a a = 1 modulo 8 for an odd a, and each step of Newton doubles the bits that are right.
FRUGALORE_HD uint32_t randk_inverse_of(uint32_t a) {
  uint32_t x = a;
  x *= 2u - a * x;
  return x * (2u - a * x);
}

FRUGALORE_HD RandkInverse randk_inverse(const RandkTile& tile) {
  return RandkInverse{randk_inverse_of(tile.multiply0), randk_inverse_of(tile.multiply1),
                      randk_inverse_of(tile.multiply2)};
}

// x of y = x ^ (x >> shift): no third power of the shift is left, for 3 shift >= bits.
FRUGALORE_HD uint32_t randk_unshift(const RandkTile& tile, uint32_t y) {
  return y ^ (y >> tile.shift) ^ (y >> (2u * tile.shift));
}

// The inverse of randk_mix.
FRUGALORE_HD uint32_t randk_unmix(const RandkTile& tile, const RandkInverse& inverse, uint32_t x) {
  x = (x - tile.add1) & tile.mask;
  x = randk_unshift(tile, x);
  x = (x * inverse.multiply2) & tile.mask;
  x = randk_unshift(tile, x);
  x = (x * inverse.multiply1) & tile.mask;
  x = randk_unshift(tile, x);
  x = (x * inverse.multiply0) & tile.mask;
  return (x - tile.add0) & tile.mask;
}

// How many elements of a matrix are inside.
FRUGALORE_HD int64_t selected_count(const Selection& selection, int64_t rows, int64_t columns) {
  switch (selection.kind) {
    case SelectionKind::none:
      return 0;
    case SelectionKind::all:
      return rows * columns;
    case SelectionKind::columns:
      return rows * selection.count;
    case SelectionKind::rows:
      return selection.count * columns;
    default:
      return randk_before(rows * columns, selection.fraction);
  }
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
