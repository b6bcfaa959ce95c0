// A selection (core/selection.h) as it comes from Python, and its checks.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <string>
#include <tuple>

#include "bindings/tensor_ref.h"
#include "core/selection.h"

namespace frugalore {

// kind (as in SelectionKind), below, chosen, density, seed (any 64 bits), tensor id, period
using SelectionArguments = std::tuple<int64_t, std::optional<TensorRef>, std::optional<TensorRef>, double,
                                      int64_t, int64_t, int64_t>;

// The selection within a matrix [rows, columns] on the device of `like`; `name` leads each message. What
// `below` and `chosen` hold is not looked at: on a card that would wait for it. Kernels clamp nothing, so
// both must come from ops.select or Selection.of.
inline Selection checked_selection(const std::string& name, const SelectionArguments& arguments, int64_t rows,
                                   int64_t columns, const TensorRef& like) {
  const auto& [kind, below, chosen, density, seed, tensor_id, period] = arguments;
  if (kind < 0 || kind > 4) {
    throw pybind11::value_error(name + ": a kind of 0 to 4 expected, got " + std::to_string(kind));
  }
  Selection selection{};
  selection.kind = static_cast<SelectionKind>(kind);
  const bool of_lines = selection.kind == SelectionKind::columns || selection.kind == SelectionKind::rows;
  if (of_lines) {
    if (!below || !chosen)
      throw pybind11::value_error(name + ": below and chosen expected for lines, got none");
    const int64_t length = selection.kind == SelectionKind::columns ? columns : rows;
    check_vector((name + ".below").c_str(), *below, DType::i32, length + 1, like);
    check_vector((name + ".chosen").c_str(), *chosen, DType::i32, chosen->numel(), like);
    if (chosen->numel() > length) {
      throw pybind11::value_error(name + ".chosen: at most " + std::to_string(length) + " expected, got " +
                                  std::to_string(chosen->numel()));
    }
    selection.below = below->as<const int32_t>();
    selection.chosen = chosen->as<const int32_t>();
    selection.count = chosen->numel();
  }
  if (selection.kind == SelectionKind::randk) {
    if (!(density >= 0.0 && density <= 1.0)) {
      throw pybind11::value_error(name + ".density: a number in [0, 1] expected, got " +
                                  number_name(density));
    }
    if (tensor_id < 0 || tensor_id > 0xffffffffLL || period < 0) {
      throw pybind11::value_error(
          name + ": a tensor_id of 0 to 4294967295 and a period of 0 or more expected, got " +
          std::to_string(tensor_id) + " and " + std::to_string(period));
    }
    selection.fraction = static_cast<uint64_t>(std::nearbyint(density * 4294967296.0));
    selection.stream = random_stream(static_cast<uint64_t>(seed), static_cast<uint32_t>(tensor_id), period,
                                     Purpose::selection);
  }
  return selection;
}

}  // namespace frugalore
