#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

struct Signs {
  DType dtype;
  int64_t count, first_index;
  Bytes out;

  RademacherJob job() {
    return {out.data(), dtype, count, first_index, random_stream(5, 3, 7, Purpose::sketch)};
  }
  auto bytes() const { return std::tie(out); }
};

TEST(Sketch, Rademacher) {
  for (const DType dtype : kFloats) {
    for (const int64_t count : {1, 4, 7, 1030}) {
      for (const int64_t first_index : {int64_t{0}, int64_t{2}, (int64_t{1} << 35) + 1}) {
        expect_same_bytes(Signs{dtype, count, first_index, Bytes(count * size_of(dtype), 0xa5)});
      }
    }
  }
}

}  // namespace
}  // namespace frugalore::test
