// Can a text hold one of these questions at all? See corpus/exam_index.py, which judges those that can.
//
// In: texts, and the n-grams of all questions with the questions that each belongs to. Out: whether in some piece of the
// text enough n-grams of one question stand near enough, which every verdict needs. Invariant: a text in which `ExamIndex.find`
// finds a question is never screened out: pieces, symbols and hashes are the same as there, no window there holds more
// than two buckets here, and a text with a character that the table is unsure of passes.
//
// Nearly all n-grams of a text belong to no question. One bit in a table that fits into the near caches says so of all
// but a few per cent; the others are looked up.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "code_map.hpp"
#include "word_hash.hpp"

namespace jmed {

constexpr uint64_t kGramBase = 0xF1357AEA2E62A9C5u;

// The questions of one kind of symbol: what `_Table` in corpus/exam_index.py holds.
class GramTable {
 public:
  // The n-grams of a question in the bucket (a stretch as long as its window) where the last one stood, and before it.
  struct Count {
    uint32_t bucket = 0, here = 0, before = 0;
  };
  struct Counts {
    std::vector<Count> of_question;
    std::vector<uint32_t> touched;
  };

  // keys[i] is an n-gram of the questions questions[begins[i]] to questions[begins[i + 1] - 1], one for each unit.
  GramTable(int n, const std::vector<uint64_t>& keys, std::vector<uint32_t> begins, std::vector<uint32_t> questions,
            const std::vector<double>& num_needed, std::vector<uint32_t> windows)
      : n_(static_cast<size_t>(n)),
        keys_(keys),
        begins_(std::move(begins)),
        questions_(std::move(questions)),
        windows_(std::move(windows)) {
    if (windows_.size() != num_needed.size() || std::count(windows_.begin(), windows_.end(), 0u))
      throw std::invalid_argument("each question needs a window");
    if (n < 1 || begins_.size() != keys.size() + 1 || begins_.back() != questions_.size())
      throw std::invalid_argument("each n-gram needs its questions");
    for (const double needed : num_needed) num_needed_.push_back(std::max(1u, static_cast<uint32_t>(std::ceil(needed))));
    for (const uint32_t question : questions_)
      if (question >= num_needed_.size()) throw std::invalid_argument("an n-gram of a question that is not there");
    for (size_t i = 0; i < n_; ++i) leaving_ *= kGramBase;
    for (int bits = 4; slots_.size() < 2 * keys.size() + 1; ++bits) {
      shift_ = 64 - bits;
      slots_.assign(size_t{1} << bits, kEmpty);
    }
    marks_.assign(size_t{1} << (kMarkBits - 6), 0);
    for (size_t i = 0; i < keys.size(); ++i) {
      const uint64_t spread = keys[i] * kGolden;
      marks_[spread >> (64 - kMarkBits + 6)] |= uint64_t{1} << (spread >> (64 - kMarkBits) & 63);
      size_t slot = spread >> shift_;
      while (slots_[slot] != kEmpty) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = static_cast<uint32_t>(i);
    }
  }

  size_t num_questions() const { return num_needed_.size(); }

  // Whether enough n-grams of one question stand among these symbols; leaves `counts` at nought.
  template <class Symbol>
  bool enough(const Symbol* symbols, size_t num_symbols, Counts& counts) const {
    if (num_symbols < n_) return false;
    if (counts.of_question.size() < num_needed_.size()) counts.of_question.resize(num_needed_.size());
    uint64_t hash = 0;
    for (size_t i = 0; i + 1 < n_; ++i) hash = hash * kGramBase + symbols[i];
    bool found = false;
    for (size_t i = n_ - 1; i < num_symbols && !found; ++i) {
      hash = hash * kGramBase + symbols[i];
      if (i >= n_) hash -= symbols[i - n_] * leaving_;
      const uint64_t spread = hash * kGolden;
      if (__builtin_expect(marks_[spread >> (64 - kMarkBits + 6)] >> (spread >> (64 - kMarkBits) & 63) & 1, 0))
        found = count(hash, spread, static_cast<uint32_t>(i), counts);
    }
    for (const uint32_t question : counts.touched) counts.of_question[question] = {};
    counts.touched.clear();
    return found;
  }

 private:
  bool count(uint64_t hash, uint64_t spread, uint32_t position, Counts& counts) const {
    for (size_t slot = spread >> shift_; slots_[slot] != kEmpty; slot = (slot + 1) & (slots_.size() - 1)) {
      const uint32_t key = slots_[slot];
      if (keys_[key] != hash) continue;
      bool found = false;
      for (uint32_t at = begins_[key]; at < begins_[key + 1]; ++at) {
        const uint32_t question = questions_[at];
        const uint32_t bucket = position / windows_[question];
        Count& count = counts.of_question[question];
        if (count.here == 0) counts.touched.push_back(question);
        if (bucket != count.bucket) count = {bucket, 0, bucket == count.bucket + 1 ? count.here : 0};
        ++count.here;
        found |= count.here + count.before >= num_needed_[question];
      }
      return found;
    }
    return false;
  }

  static constexpr uint32_t kEmpty = UINT32_MAX;
  static constexpr int kMarkBits = 23;  // one MiB
  size_t n_;
  uint64_t leaving_ = 1;
  int shift_ = 0;
  std::vector<uint64_t> keys_;
  std::vector<uint32_t> begins_, questions_, windows_, num_needed_, slots_;
  std::vector<uint64_t> marks_;
};

class Screen {
 public:
  struct Workspace {
    Points codes;
    std::vector<uint64_t> words;
    GramTable::Counts characters_counts, words_counts;
  };

  Screen(GramTable characters, GramTable words, uint32_t first_japanese, size_t num_letters, size_t step, size_t overlap)
      : characters_(std::move(characters)),
        words_(std::move(words)),
        first_japanese_(first_japanese),
        num_letters_(num_letters),
        step_(step),
        overlap_(overlap) {
    if (step < 1) throw std::invalid_argument("a piece has at least one character");
  }

  template <class Character>
  bool may_hold(const CodeMap& map, const Character* text, size_t length, Workspace& work) const {
    for (size_t begin = 0; begin == 0 || begin < length; begin += step_)
      if (piece_may_hold(map, text + begin, std::min(step_ + overlap_, length - begin), work)) return true;
    return false;
  }

 private:
  // As `ExamIndex._tables` has it, a table is left out where the text has no, or too few, symbols of its kind.
  template <class Character>
  bool piece_may_hold(const CodeMap& map, const Character* text, size_t length, Workspace& work) const {
    Points& codes = work.codes;
    if (!map.map(text, length, codes)) return true;
    size_t num_symbols = 0, num_japanese = 0;
    for (const uint32_t code : codes) {
      num_symbols += code != 0;
      num_japanese += code >= first_japanese_;
    }
    if (words_.num_questions() && num_symbols - num_japanese >= num_letters_) {
      find_words(codes, work.words);
      if (words_.enough(work.words.data(), work.words.size(), work.words_counts)) return true;
    }
    if (!characters_.num_questions() || !num_japanese) return false;
    codes.erase(std::remove(codes.begin(), codes.end(), uint32_t{0}), codes.end());
    return characters_.enough(codes.data(), codes.size(), work.characters_counts);
  }

  static void find_words(const Points& codes, std::vector<uint64_t>& words) {
    words.clear();
    WordHash word;
    bool inside = false;
    for (const uint32_t code : codes) {
      if (code)
        word.add(code);
      else if (inside)
        words.push_back(word.take());
      inside = code != 0;
    }
    if (inside) words.push_back(word.take());
  }

  GramTable characters_, words_;
  uint32_t first_japanese_;
  size_t num_letters_, step_, overlap_;
};

}  // namespace jmed
