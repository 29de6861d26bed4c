// Which 64-bit number stands for a word? The same as corpus/words.py: sum of code[i] * kWordBase^i, then mixed once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jmed {

constexpr uint64_t kWordBase = 0xD1342543DE82EF95u;
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

class WordHash {
 public:
  void add(uint32_t code) {
    sum_ += code * power_;
    power_ *= kWordBase;
  }
  uint64_t take() {
    const uint64_t word = (sum_ ^ (sum_ >> 29)) * kGolden;
    *this = WordHash();
    return word;
  }

 private:
  uint64_t sum_ = 0, power_ = 1;
};

}  // namespace jmed
