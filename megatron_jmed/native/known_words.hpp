// Which words can be encoded apart from the rest of a text, and which of them are known already?
//
// In: character ranks. Out: for each two neighbours whether a piece may hold both, and a table of finished words.
//
// A vocabulary of 100,000 pieces holds only some 35,000 different pairs of neighbouring characters. Between two
// characters that stand side by side in no piece every segmentation has a border, so the best way through a text is the
// best ways through the stretches between such borders, one after the other. A stretch that begins with a space is a
// word; words return, so their pieces are kept. (Stretches of Japanese are two characters long: searching them again
// was measured to be faster than looking them up.)
//
// Rounding. The scores of a text are summed in float, so what is best in a word may depend on the sum before it, when
// two ways are close. A word of n characters is at most n additions, each off by at most half of the last place u of
// the sum; one way can overtake another only if they are closer than 2 n u/2. `limit` is the largest sum before the
// word for which twice this is not more than the distance of its two best ways: beyond it the word is searched anew.
// Adding the scores of the kept pieces one by one gives the same sum, to the bit, that the full search would have had.
// Invariant: the table never changes an id, it only saves work; a false "may hold both" costs time only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace jmed {

// One bit for each (hashed) pair of ranks.
class Neighbours {
 public:
  Neighbours() : bits_(size_t{1} << (kBits - 6)) {}

  void add(uint16_t left, uint16_t right) {
    const uint32_t bit = place(left, right);
    bits_[bit >> 6] |= uint64_t{1} << (bit & 63);
  }

  bool may_share_a_piece(uint16_t left, uint16_t right) const {
    const uint32_t bit = place(left, right);
    return bits_[bit >> 6] >> (bit & 63) & 1;
  }

 private:
  static uint32_t place(uint16_t left, uint16_t right) { return (left * 0x9E3779B1u + right * 0x85EBCA77u) >> (32 - kBits); }

  static constexpr int kBits = 20;  // 128 KiB: with 35,000 pairs 3 % of the others look like one
  std::vector<uint64_t> bits_;
};

// More than the scores of one word add up to.
constexpr float kRoom = 4096;

// The ranks of a word as 64-bit numbers, zeros behind them: comparing and hashing take no step a character.
// The text's ranks must be readable for kMaxCharacters beyond their end.
struct WordKey {
  static constexpr size_t kMaxCharacters = 16, kRanksPerNumber = 4, kMaxNumbers = kMaxCharacters / kRanksPerNumber;

  static size_t num_numbers(size_t num) { return (num + kRanksPerNumber - 1) / kRanksPerNumber; }

  static uint64_t number(const uint16_t* ranks, size_t num, size_t i) {
    uint64_t whole;
    std::memcpy(&whole, ranks + i * kRanksPerNumber, sizeof whole);  // little endian: the first rank is the lowest
    const size_t left = num - i * kRanksPerNumber;
    return left >= kRanksPerNumber ? whole : whole & ((uint64_t{1} << (16 * left)) - 1);
  }

  static uint64_t hash(const uint16_t* ranks, size_t num) {
    uint64_t hash = num;
    for (size_t i = 0; i < num_numbers(num); ++i) {
      hash = (hash ^ number(ranks, num, i)) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
    }
    return hash * 0xBF58476D1CE4E5B9u;
  }
};

// One word and its pieces; one cache line.
struct alignas(64) KnownWord {
  static constexpr size_t kMaxPieces = 4;
  float limit = -1;  // of the absolute sum before it; negative: never known to be safe
  uint8_t num_characters = 0, num_pieces = 0;
  uint16_t last_missed = 0;  // of what was looked for here in vain
  uint8_t ends[kMaxPieces] = {};  // behind which character each piece ends
  int32_t ids[kMaxPieces] = {};
  uint64_t key[WordKey::kMaxNumbers] = {};

  bool holds(const uint16_t* ranks, size_t num) const {
    if (num_characters != num) return false;
    uint64_t differences = 0;
    for (size_t i = 0; i < WordKey::num_numbers(num); ++i) differences |= key[i] ^ WordKey::number(ranks, num, i);
    return differences == 0;
  }
};
static_assert(sizeof(KnownWord) == 64);

class WordTable {
 public:
  KnownWord& at(uint64_t hash) { return slots_[hash >> (64 - kBits)]; }
  void clear() { slots_.assign(slots_.size(), KnownWord()); }

 private:
  static constexpr int kBits = 16;  // 4 MiB: a corpus' words come again and again, few of them make most of a text
  std::vector<KnownWord> slots_{size_t{1} << kBits};
};

// The largest absolute sum before a word of `num` characters at which ways `distance` apart stay in order.
inline float safe_limit(double distance, size_t num) {
  // A float below 2^e has its last place at 2^(e-24).
  const int exponent = distance > 0 ? std::ilogb(distance / (2.0 * static_cast<double>(num))) + 24 : -1;
  return exponent > 12 ? std::ldexp(1.0f, std::min(exponent, 100)) - kRoom : -1;
}

}  // namespace jmed
