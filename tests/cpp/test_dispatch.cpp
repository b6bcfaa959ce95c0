#include <gtest/gtest.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace frugalore::cpu {
namespace {

std::string error_of(const char* name) {
  try {
    force_isa(name);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

class Dispatch : public testing::Test {
 protected:
  void SetUp() override { before_ = isa_name(active_isa()); }
  void TearDown() override { force_isa(before_.c_str()); }

 private:
  std::string before_;
};

TEST_F(Dispatch, AnUnknownSetIsRefusedAndNothingChanges) {
  force_isa("baseline");
  EXPECT_EQ(error_of("mmx"), "FRUGALORE_ISA: baseline, avx2 or avx512 expected, got mmx");
  EXPECT_EQ(error_of(""), "FRUGALORE_ISA: baseline, avx2 or avx512 expected, got ");
  EXPECT_EQ(active_isa(), Isa::baseline);
}

TEST_F(Dispatch, ASetThatDoesNotRunHereSaysSo) {
  for (const char* name : {"avx2", "avx512"}) {
    const std::string error = error_of(name);
    if (error.empty()) {
      EXPECT_STREQ(isa_name(active_isa()), name);
    } else {
      EXPECT_TRUE(error.find("does not run on this machine") != std::string::npos ||
                  error.find("is not in this build") != std::string::npos)
          << error;
    }
  }
}

// Without these definitions dispatch() compiles, and every job silently goes to the baseline.
TEST_F(Dispatch, TheBuildKnowsItsSets) {
#if defined(__x86_64__)
  EXPECT_EQ(FRUGALORE_HAS_AVX2, 1);
  EXPECT_EQ(FRUGALORE_HAS_AVX512, 1);
#endif
  EXPECT_EQ(FRUGALORE_HAS_BASELINE, 1);
}

TEST_F(Dispatch, EverySetGivesTheSameBytes) {
  std::vector<uint8_t> codes(1001), expected;
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 7 % 16);
  for (const char* name : {"baseline", "avx2", "avx512"}) {
    if (!error_of(name).empty()) continue;
    std::vector<uint8_t> packed(501);
    dispatch(Int4PackJob{codes.data(), packed.data(), 1, 1001});
    if (expected.empty()) expected = packed;
    EXPECT_EQ(packed, expected) << name;
  }
}

}  // namespace
}  // namespace frugalore::cpu
