// What is the MinHash signature of a text? See corpus/minhash.py, of which this gives every bit.
//
// In: a text's comparison form as code points. Out: its units (characters, or hashes of words), and the smallest value
// of each hash function over all runs of `ngram` units. Invariant: the numbers do not depend on the machine; the widest
// vectors that it has are chosen when the program runs.
//
// The hash functions are h -> m (x xor x / 2^16) with x = a h + c, all modulo 2^32. One vector holds several functions;
// the smallest values of kGroup vectors stay in registers while a block of n-grams passes by.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "code_map.hpp"
#include "word_hash.hpp"

namespace jmed {

constexpr uint32_t kMix3 = 0x7FEB352D;

inline uint64_t mixed(uint64_t number) {
  number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9u;
  number = (number ^ (number >> 27)) * 0x94D049BB133111EBu;
  return number ^ (number >> 31);
}

// ---- the smallest values, for vectors of several widths

template <int kLanes>
struct Vector {
  typedef uint32_t type __attribute__((vector_size(4 * kLanes)));
};

template <int kLanes, int kGroup>
__attribute__((always_inline)) inline void smallest_of_group(const uint32_t* hashes, size_t num_hashes,
                                                             const uint32_t* factors, const uint32_t* summands,
                                                             uint32_t* smallest) {
  using V = typename Vector<kLanes>::type;
  V factor[kGroup], summand[kGroup], least[kGroup];
  std::memcpy(factor, factors, sizeof factor);
  std::memcpy(summand, summands, sizeof summand);
  std::memcpy(least, smallest, sizeof least);
  for (size_t i = 0; i < num_hashes; ++i)
    for (int g = 0; g < kGroup; ++g) {
      V value = factor[g] * hashes[i] + summand[g];
      value ^= value >> 16;
      value *= kMix3;
      least[g] = value < least[g] ? value : least[g];
    }
  std::memcpy(smallest, least, sizeof least);
}

template <int kLanes, int kGroup>
__attribute__((always_inline)) inline void smallest_of_all(const uint32_t* hashes, size_t num_hashes,
                                                           const uint32_t* factors, const uint32_t* summands,
                                                           size_t num_functions, uint32_t* smallest) {
  size_t at = 0;
  for (; at + kGroup * kLanes <= num_functions; at += kGroup * kLanes)
    smallest_of_group<kLanes, kGroup>(hashes, num_hashes, factors + at, summands + at, smallest + at);
  for (; at < num_functions; at += kLanes)
    smallest_of_group<kLanes, 1>(hashes, num_hashes, factors + at, summands + at, smallest + at);
}

using Smallest = void (*)(const uint32_t*, size_t, const uint32_t*, const uint32_t*, size_t, uint32_t*);

inline void smallest_plain(const uint32_t* hashes, size_t num_hashes, const uint32_t* factors, const uint32_t* summands,
                           size_t num_functions, uint32_t* smallest) {
  smallest_of_all<4, 4>(hashes, num_hashes, factors, summands, num_functions, smallest);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline void smallest_avx2(const uint32_t* hashes, size_t num_hashes,
                                                          const uint32_t* factors, const uint32_t* summands,
                                                          size_t num_functions, uint32_t* smallest) {
  smallest_of_all<8, 5>(hashes, num_hashes, factors, summands, num_functions, smallest);
}
__attribute__((target("avx512f"))) inline void smallest_avx512(const uint32_t* hashes, size_t num_hashes,
                                                               const uint32_t* factors, const uint32_t* summands,
                                                               size_t num_functions, uint32_t* smallest) {
  smallest_of_all<16, 6>(hashes, num_hashes, factors, summands, num_functions, smallest);
}
#endif

// What this machine can run, widest first.
inline std::vector<std::pair<std::string, Smallest>> vector_kinds() {
  std::vector<std::pair<std::string, Smallest>> kinds;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) kinds.emplace_back("avx512", smallest_avx512);
  if (__builtin_cpu_supports("avx2")) kinds.emplace_back("avx2", smallest_avx2);
#endif
  kinds.emplace_back("plain", smallest_plain);
  return kinds;
}

// ---- from code points to a signature

enum class Unit { kCharacter, kWord, kByScript };

// Memory that the texts of one call share.
struct SignWorkspace {
  static constexpr size_t kBlock = 1024;
  std::vector<uint64_t> words;
  std::vector<uint32_t> smallest;
  uint32_t block[kBlock];
};

class Signer {
 public:
  Signer(int ngram, std::vector<uint32_t> factors, std::vector<uint32_t> summands, std::vector<bool> is_word,
         const std::string& vectors)
      : ngram_(static_cast<size_t>(ngram)),
        num_functions_(factors.size()),
        factors_(std::move(factors)),
        summands_(std::move(summands)),
        is_word_(std::move(is_word)) {
    if (ngram < 1 || summands_.size() != num_functions_ || is_word_.size() != kNumCodePoints)
      throw std::invalid_argument("n-grams of at least one unit, as many summands as factors, a mark for each code point");
    const size_t padded = (num_functions_ + kMostLanes - 1) / kMostLanes * kMostLanes;
    factors_.resize(padded, 1);
    summands_.resize(padded, 0);
    powers_.push_back(1);
    while (powers_.size() <= ngram_) powers_.push_back(powers_.back() * kGolden);
    for (const auto& [name, function] : vector_kinds())
      if (!smallest_ && (vectors.empty() || vectors == name)) smallest_ = function;
    if (!smallest_) throw std::invalid_argument("this machine has no vectors called " + vectors);
  }

  size_t num_functions() const { return num_functions_; }

  // Takes the spaces out of `points` and writes the signature (num_functions numbers) to `signature`.
  void sign(Points& points, Unit unit, uint32_t* signature, SignWorkspace& work) const {
    if (unit == Unit::kByScript) unit = unit_by_script(points);
    work.words.clear();
    if (unit == Unit::kWord) find_words(points, work.words);
    points.erase(std::remove(points.begin(), points.end(), uint32_t{' '}), points.end());
    work.smallest.assign(factors_.size(), std::numeric_limits<uint32_t>::max());
    if (work.words.empty())
      pass_ngrams(points.data(), points.size(), work);
    else
      pass_ngrams(work.words.data(), work.words.size(), work);
    std::copy_n(work.smallest.begin(), num_functions_, signature);
  }

 private:
  // By the share of kana and Chinese characters among the first 2,000, a run of white space counted as one.
  static Unit unit_by_script(const Points& points) {
    size_t seen = 0, num_cjk = 0;
    bool space = false;
    for (const uint32_t point : points) {
      if (point == ' ') {
        space = seen > 0;
        continue;
      }
      seen += space;
      space = false;
      if (seen == kScriptCharacters) break;
      ++seen;
      num_cjk += (point >= 0x3040 && point <= 0x30FF) || (point >= 0x3400 && point <= 0x9FFF);
      if (seen == kScriptCharacters) break;
    }
    return static_cast<double>(num_cjk) >= kCjkShare * static_cast<double>(seen) ? Unit::kCharacter : Unit::kWord;
  }

  void find_words(const Points& points, std::vector<uint64_t>& words) const {
    WordHash word;
    bool inside = false;
    for (const uint32_t point : points) {
      const bool belongs = is_word_[point];
      if (belongs)
        word.add(point);
      else if (inside)
        words.push_back(word.take());
      inside = belongs;
    }
    if (inside) words.push_back(word.take());
  }

  // The hash of units u[0] to u[n-1] is mixed(n G^n + u[0] G^n + ... + u[n-1] G) modulo 2^64, with G = kGolden; the sum
  // rolls from one n-gram to the next.
  template <class Number>
  void pass_ngrams(const Number* units, size_t num_units, SignWorkspace& work) const {
    const size_t width = std::min(ngram_, num_units);
    const uint64_t constant = width * powers_[width], leaving = powers_[width] * kGolden;
    uint64_t sum = 0;
    for (size_t i = 0; i < width; ++i) sum = (sum + units[i]) * kGolden;
    size_t filled = 0;
    for (size_t i = 0;; ++i) {
      work.block[filled++] = static_cast<uint32_t>(mixed(sum + constant) >> 32);
      if (filled == SignWorkspace::kBlock) {
        pass(filled, work);
        filled = 0;
      }
      if (i + width >= num_units) break;
      sum = (sum + units[i + width]) * kGolden - units[i] * leaving;
    }
    pass(filled, work);
  }

  void pass(size_t filled, SignWorkspace& work) const {
    smallest_(work.block, filled, factors_.data(), summands_.data(), factors_.size(), work.smallest.data());
  }

  static constexpr size_t kMostLanes = 16, kScriptCharacters = 2000;
  static constexpr double kCjkShare = 0.1;
  size_t ngram_, num_functions_;
  std::vector<uint32_t> factors_, summands_;
  std::vector<bool> is_word_;
  std::vector<uint64_t> powers_;  // of kGolden
  Smallest smallest_ = nullptr;
};

}  // namespace jmed
