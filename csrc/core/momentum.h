// The two rules with one buffer m a parameter: SGD with momentum and Lion.
//
//   sgdm   m <- momentum m + (1 - dampening) g      (m <- momentum m + g at the first applied update)
//          direction = m, or g + momentum m with nesterov             as in torch.optim.SGD
//   lion   direction = sign(beta1 m + (1 - beta1) g)
//          m <- beta2 m + (1 - beta2) g                               Chen et al., arXiv 2302.06675
//
// `step` writes  w <- keep w - lr direction  (or keep (w - lr direction));  keep = 1 - lr wd. What is skipped
// because it is not finite, and how progress counts it, is as in core/adamw.h: elements in `step`, where m
// and w are looked at, and whole calls in `direction`.
#pragma once

#include "core/adamw.h"

namespace frugalore {

enum class MomentumRule { sgdm, lion };

struct MomentumHyper {
  MomentumRule rule;
  double first;   // momentum, or beta1
  double second;  // dampening, or beta2
  bool nesterov;
};

struct MomentumTensor {
  void* param;       // [count] of param_dtype
  const void* grad;  // [count] of grad_dtype
  float* momentum;
  int64_t* progress;  // [3]; skipped counts elements here
  int64_t count;
  uint32_t tensor_id;
  DType param_dtype, grad_dtype;
};

struct MomentumStepJob {
  const MomentumTensor* tensors;
  int64_t tensor_count;
  MomentumHyper hyper;
  AdamWrite write;
};

struct MomentumDirectionJob {
  void* r;  // [count] of r_dtype: the projected gradient, replaced by the direction
  DType r_dtype;
  int64_t count;
  float* momentum;
  int64_t* progress;  // skipped counts calls here
  MomentumHyper hyper;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

// m <- keep m + rest g. The direction is  a m + b g  of the fresh m (sgdm), or the sign of that of the old
// one (lion).
struct MomentumScalars {
  float keep, rest, a, b;
};

FRUGALORE_HD MomentumScalars momentum_scalars(const MomentumHyper& hyper, bool is_first) {
  const float first = static_cast<float>(hyper.first), second = static_cast<float>(hyper.second);
  const float rest_of_first = static_cast<float>(1.0 - hyper.first);
  const float rest_of_second = static_cast<float>(1.0 - hyper.second);
  if (hyper.rule == MomentumRule::lion) return MomentumScalars{second, rest_of_second, first, rest_of_first};
  return MomentumScalars{first, is_first ? 1.0f : rest_of_second, hyper.nesterov ? first : 1.0f,
                         hyper.nesterov ? 1.0f : 0.0f};
}

// After progress was advanced.
FRUGALORE_HD MomentumScalars momentum_scalars(const MomentumHyper& hyper, const int64_t* progress) {
  return momentum_scalars(hyper, progress[kProgressApplied] == 1);
}

FRUGALORE_HD float momentum_fresh(const MomentumScalars& s, float m, float g) {
  return s.keep * m + s.rest * g;
}

template <MomentumRule rule>
FRUGALORE_HD float momentum_direction(const MomentumScalars& s, float m, float fresh, float g) {
  return rule == MomentumRule::lion ? sign_of(s.a * m + s.b * g) : s.a * fresh + s.b * g;
}

// One element of `step`, before the weight is rounded to its dtype.
struct MomentumElement {
  float w, m;
  int32_t skipped;  // 0 or 1
};

template <MomentumRule rule>
FRUGALORE_HD MomentumElement momentum_element(const MomentumScalars& s, const AdamWriteScalars& write,
                                              float w, float g, float m) {
  const float fresh_m = momentum_fresh(s, m, g);
  const float fresh_w = write.keep * w - write.coefficient * momentum_direction<rule>(s, m, fresh_m, g);
  const uint32_t applied =
      static_cast<uint32_t>(is_finite(fresh_m)) & static_cast<uint32_t>(is_finite(fresh_w));
  const uint32_t mask = 0u - applied;
  return MomentumElement{adam_select(mask, fresh_w, w), adam_select(mask, fresh_m, m),
                         static_cast<int32_t>(1u - applied)};
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
