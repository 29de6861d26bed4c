// Which ids does a text become under a SentencePiece unigram model?
//
// In: code points. Out: the ids of the best segmentation, exactly those of sentencepiece.
//
// The score of a segmentation is the sum of its pieces' scores, so the best way to reach position j is
//     best(j) = max over pieces [i, j) of best(i) + score(piece)
// (Viterbi). A character that is no piece by itself may also stand alone, at the lowest score of all pieces less 10,
// and then becomes its UTF-8 bytes (or one unknown id for a run of them in a model without byte fallback).
//
// Equal ids need more than the formula, since near ties are decided by rounding:
//   - starts are tried in order, shorter pieces first, and a later candidate must be truly greater to win;
//   - Family::kFloat, sentencepiece 0.2.2 and later: float sums, and once best(i) passes +-100,000 all open sums are
//     shifted by it, which keeps long texts precise;
//   - Family::kDouble, sentencepiece up to 0.2.1: each candidate is summed and compared in double against the float that
//     is kept, without a shift; so a candidate equal to the kept one before rounding may replace it;
//   - user-defined pieces score 0.1 * (bytes - 1) in the first family and a constant near -0.1 in the second.
// Words that came before are passed in one step (see known_words.hpp); the ids are those of one search over all.
// Invariant: a text's ids depend on that text alone.
#pragma once

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "known_words.hpp"
#include "model_file.hpp"
#include "text.hpp"
#include "trie.hpp"

namespace jmed {

enum class Family { kFloat, kDouble };

struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr uint32_t kSpaceSymbol = 0x2581;
constexpr float kUnknownPenalty = 10.0f;
constexpr float kShiftBeyond = 100000.0f;

// Memory that texts share, one after the other; of one thread at a time.
struct Workspace {
  struct Best {
    float score;
    int32_t id;  // the piece that ends here on the best way, or -1: nothing ends here yet
  };
  std::vector<uint32_t> points;
  std::vector<uint16_t> ranks;
  std::vector<uint8_t> joined;  // whether a piece may hold this character and the one before
  std::vector<Best> best;
  std::vector<int32_t> reversed;
  Family family = Family::kFloat;  // of the table
  WordTable known;
};

class Unigram {
 public:
  explicit Unigram(const ModelFile& model) : dummy_prefix_(model.dummy_prefix), byte_fallback_(model.byte_fallback) {
    refuse_unsupported(model);
    std::vector<std::vector<uint32_t>> points = code_points(model);
    const int32_t num_ranks = rank_characters(points);
    std::vector<TrieKey> keys;
    for (size_t id = 0; id < points.size(); ++id)
      if (!points[id].empty()) keys.push_back({ranks_of(points[id]), static_cast<int32_t>(id), scores_[id]});
    for (const TrieKey& key : keys)
      for (size_t i = 1; i < key.ranks.size(); ++i) neighbours_.add(key.ranks[i - 1], key.ranks[i]);
    for (const TrieKey& key : keys) keeps_words_ &= std::fabs(key.score) * WordKey::kMaxCharacters < kRoom;
    states_ = TrieBuilder(std::move(keys), num_ranks).build();
  }

  size_t num_pieces() const { return piece_characters_.size(); }
  size_t num_states() const { return states_.size(); }

  // Appends the ids of one text to `out`; throws std::invalid_argument on a lone surrogate.
  template <class Character, class Id>
  void encode(const Character* text, size_t num_characters, Family family, Workspace& work, std::vector<Id>& out) const {
    if (num_characters == 0) return;
    if (work.family != family) {
      work.known.clear();
      work.family = family;
    }
    const size_t num = prepare(text, num_characters, work);
    if (family == Family::kFloat)
      find_best<Family::kFloat>(num, work);
    else
      find_best<Family::kDouble>(num, work);
    trace_back(text, num, work, out);
  }

 private:
  static void refuse_unsupported(const ModelFile& model) {
    if (model.model_type != kUnigramModel)
      throw Unsupported("its model type is " + std::to_string(model.model_type) + ", not unigram (1)");
    if (model.has_rewriting_rules)
      throw Unsupported("it normalises texts by the rules '" + model.normalizer_name + "'; only 'identity' is known");
    if (model.remove_extra_spaces) throw Unsupported("it removes extra white space");
    if (!model.escape_spaces) throw Unsupported("it does not write spaces as U+2581");
    if (model.space_as_suffix) throw Unsupported("it puts the space after a word");
  }

  // Fills the tables by id and returns the characters of each piece that a text can contain.
  std::vector<std::vector<uint32_t>> code_points(const ModelFile& model) {
    const size_t num = model.pieces.size();
    std::vector<std::vector<uint32_t>> points(num);
    float lowest = FLT_MAX, highest = FLT_MIN;  // the smallest positive float, as in sentencepiece
    for (const Piece& piece : model.pieces)
      if (piece.type == kNormal) {
        lowest = std::min(lowest, piece.score);
        highest = std::max(highest, piece.score);
      }
    unknown_score_ = lowest - kUnknownPenalty;
    piece_characters_.assign(num, 1);
    scores_.assign(num, 0);
    old_scores_.assign(num, 0);
    byte_ids_.assign(256, -1);
    for (size_t id = 0; id < num; ++id) {
      const Piece& piece = model.pieces[id];
      const bool user = piece.type == kUserDefined;
      if (piece.type == kUnknown) unknown_id_ = static_cast<int32_t>(id);
      if (piece.type == kByte) byte_ids_[byte_of(piece.text)] = static_cast<int32_t>(id);
      if (piece.type != kNormal && !user) continue;
      scores_[id] = user ? static_cast<float>(0.1 * (static_cast<int>(piece.text.size()) - 1)) : piece.score;
      old_scores_[id] = user ? static_cast<float>(piece.text.size()) * highest - 0.1 : static_cast<double>(piece.score);
      decode_utf8(reinterpret_cast<const uint8_t*>(piece.text.data()), piece.text.size(), points[id]);
      piece_characters_[id] = static_cast<uint32_t>(points[id].size());
      // Texts have U+2581 where a piece might have a space, so this one never occurs.
      if (std::find(points[id].begin(), points[id].end(), ' ') != points[id].end()) points[id].clear();
    }
    if (unknown_id_ < 0) throw Unsupported("it has no unknown piece");
    if (byte_fallback_ && std::find(byte_ids_.begin(), byte_ids_.end(), -1) != byte_ids_.end())
      throw Unsupported("it lacks some of the 256 byte pieces");
    return points;
  }

  static uint8_t byte_of(const std::string& piece) {
    unsigned byte = 256;
    if (std::sscanf(piece.c_str(), "<0x%X>", &byte) != 1 || byte > 255) throw Unsupported("byte piece " + piece);
    return static_cast<uint8_t>(byte);
  }

  int32_t rank_characters(const std::vector<std::vector<uint32_t>>& pieces) {
    std::vector<uint32_t> uses(kNumCodePoints), characters;
    for (const auto& points : pieces)
      for (uint32_t point : points)
        if (uses[point]++ == 0) characters.push_back(point);
    if (characters.size() > UINT16_MAX) throw Unsupported("it has more than 65,535 different characters");
    std::sort(characters.begin(), characters.end(),
              [&](uint32_t a, uint32_t b) { return uses[a] != uses[b] ? uses[a] > uses[b] : a < b; });
    rank_of_.assign(kNumCodePoints, 0);
    for (size_t i = 0; i < characters.size(); ++i) rank_of_[characters[i]] = static_cast<uint16_t>(i + 1);
    rank_of_[' '] = rank_of_[kSpaceSymbol];
    return static_cast<int32_t>(characters.size()) + 1;
  }

  std::vector<uint16_t> ranks_of(const std::vector<uint32_t>& points) const {
    std::vector<uint16_t> ranks;
    for (uint32_t point : points) ranks.push_back(rank_of_[point]);
    return ranks;
  }

  // Fills ranks and clears best; returns the number of characters with the prefix.
  template <class Character>
  size_t prepare(const Character* text, size_t num_characters, Workspace& work) const {
    const size_t num = num_characters + dummy_prefix_;
    if (work.best.size() < num + 1) {
      work.best.resize(num + 1);
      work.joined.resize(num + 1);
      work.ranks.resize(num + WordKey::kMaxCharacters);
    }
    uint16_t* rank = work.ranks.data();
    if (dummy_prefix_) *rank++ = rank_of_[kSpaceSymbol];
    for (size_t i = 0; i < num_characters; ++i) rank[i] = rank_of_[static_cast<uint32_t>(text[i])];
    std::fill(rank + num_characters, rank + num_characters + kLookAhead + 1, uint16_t{0});
    const uint16_t* const ranks = work.ranks.data();
    for (size_t i = 1; i < num; ++i) work.joined[i] = neighbours_.may_share_a_piece(ranks[i - 1], ranks[i]);
    work.joined[num] = 0;
    std::fill(work.best.begin(), work.best.begin() + static_cast<ptrdiff_t>(num) + 1, Workspace::Best{0, -1});
    return num;
  }

  // Viterbi: fills work.best at the end of each piece of the best way, and at other places; words that the table holds
  // are passed in one step.
  template <Family family>
  void find_best(size_t num, Workspace& work) const {
    using Score = std::conditional_t<family == Family::kFloat, float, double>;
    const State* const states = states_.data();
    const uint16_t* const ranks = work.ranks.data();
    Workspace::Best* const best = work.best.data();
    const uint8_t* const joined = work.joined.data();
    const uint16_t space = rank_of_[kSpaceSymbol];
    const auto offer = [](Workspace::Best& target, Score score, int32_t id) {
      if (target.id < 0 || score > static_cast<Score>(target.score)) target = {static_cast<float>(score), id};
    };
    size_t furthest = 0;
    for (size_t i = 0; i < num; ++i) {
      // The table is larger than the nearest cache: ask early for the first step that will be taken from here on.
      __builtin_prefetch(&states[states[ranks[i + kLookAhead]].base + ranks[i + kLookAhead + 1]]);
      if (family == Family::kFloat && __builtin_expect(std::fabs(best[i].score) > kShiftBeyond, 0)) {
        const float shift = best[i].score;
        for (size_t j = i; j <= std::max(i, furthest); ++j)
          if (j == i || best[j].id >= 0) best[j].score -= shift;
      }
      if (ranks[i] == space && (i == 0 || !joined[i])) {
        if (const size_t passed = pass_word<family>(i, work)) {
          i += passed - 1;
          continue;
        }
      }
      const float here = best[i].score;
      if (states[ranks[i]].id < 0) offer(best[i + 1], unknown_score_ + here, unknown_id_);
      const size_t end = each_piece(ranks, i, [joined](size_t end) { return joined[end]; }, [&](size_t end, const State& state) {
        offer(best[end], score_of<Score>(state) + here, state.id);
      });
      furthest = std::max(furthest, end);
    }
  }

  // The length of the word that begins here if the table holds it, with best[] filled; else 0.
  template <Family family>
  size_t pass_word(size_t begin, Workspace& work) const {
    const uint16_t* const ranks = work.ranks.data() + begin;
    size_t length = 1;
    while (work.joined[begin + length])
      if (++length > WordKey::kMaxCharacters) return 0;
    if (length < kMinKept) return 0;
    KnownWord& word = work.known.at(WordKey::hash(ranks, length));
    Workspace::Best* const best = work.best.data() + begin;
    float sum = best[0].score;
    if (!word.holds(ranks, length)) {
      meet<family>(word, ranks, length);
      return 0;
    }
    if (std::fabs(sum) > limit_of<family>(word)) return 0;
    for (size_t i = 0; i < word.num_pieces; ++i) {
      sum = plus<family>(sum, word.ids[i]);
      best[word.ends[i]] = {sum, word.ids[i]};
    }
    return length;
  }

  template <Family family>
  static float limit_of(const KnownWord& pieces) {
    return family == Family::kFloat ? std::min(pieces.limit, kShiftBeyond - kRoom) : pieces.limit;
  }

  template <Family family>
  float plus(float sum, int32_t id) const {
    if constexpr (family == Family::kFloat) return scores_[id] + sum;
    return static_cast<float>(old_scores_[id] + static_cast<double>(sum));
  }

  // Calls found(end, state) for each piece that begins at ranks[begin], shorter ones first; returns how far the trie goes.
  template <class GoesOn, class Found>
  size_t each_piece(const uint16_t* ranks, size_t begin, GoesOn goes_on, Found found) const {
    const State* const states = states_.data();
    int32_t at = ranks[begin];
    const State* state = &states[at];
    size_t end = begin + 1;
    if (state->id >= 0) found(end, *state);
    while (goes_on(end) && state->base) {
      const int32_t next = state->base + ranks[end];
      state = &states[next];
      if (state->check != at) break;
      at = next;
      ++end;
      if (state->id >= 0) found(end, *state);
    }
    return end;
  }

  template <class Score>
  Score score_of(const State& state) const {
    if constexpr (std::is_same_v<Score, float>) return state.score;
    return static_cast<Score>(old_scores_[state.id]);
  }

  // Notes a word that the table does not hold, and keeps it at the second meeting: most new ones never come again.
  template <Family family>
  void meet(KnownWord& slot, const uint16_t* ranks, size_t num) const {
    const uint16_t tag = static_cast<uint16_t>(ranks[1] * 31 + ranks[num - 1] * 7 + num) | 1;
    if (slot.last_missed == tag) slot = two_best<family>(ranks, num);
    slot.last_missed = tag;
  }

  // The best way through a word and by how much it beats the next best one, without rounding that matters.
  template <Family family>
  KnownWord two_best(const uint16_t* ranks, size_t num) const {
    constexpr double kNone = -1e300;
    double best[WordKey::kMaxCharacters + 1], second[WordKey::kMaxCharacters + 1];
    int32_t ids[WordKey::kMaxCharacters + 1];
    std::fill(best, best + num + 1, kNone);
    std::fill(second, second + num + 1, kNone);
    best[0] = 0;
    bool all_known = keeps_words_;
    for (size_t i = 0; i < num; ++i) {
      all_known &= states_[ranks[i]].id >= 0;
      each_piece(ranks, i, [num](size_t end) { return end < num; }, [&](size_t end, const State& state) {
        const double score = family == Family::kFloat ? static_cast<double>(scores_[state.id]) : old_scores_[state.id];
        if (best[i] + score > best[end]) {
          second[end] = std::max(best[end], second[i] + score);
          best[end] = best[i] + score;
          ids[end] = state.id;
        } else {
          second[end] = std::max(second[end], best[i] + score);
        }
      });
    }
    KnownWord made;
    made.num_characters = static_cast<uint8_t>(num);
    for (size_t i = 0; i < WordKey::num_numbers(num); ++i) made.key[i] = WordKey::number(ranks, num, i);
    if (!all_known) return made;
    size_t num_pieces = 0;
    for (size_t end = num; end > 0; end -= piece_characters_[ids[end]]) ++num_pieces;
    if (num_pieces > KnownWord::kMaxPieces) return made;
    made.num_pieces = static_cast<uint8_t>(num_pieces);
    for (size_t end = num; end > 0; end -= piece_characters_[ids[end]]) {
      made.ids[--num_pieces] = ids[end];
      made.ends[num_pieces] = static_cast<uint8_t>(end);
    }
    made.limit = safe_limit(best[num] - second[num], num);
    return made;
  }

  // Appends the ids of the best way to `out`.
  template <class Character, class Id>
  void trace_back(const Character* text, size_t num, Workspace& work, std::vector<Id>& out) const {
    std::vector<int32_t>& reversed = work.reversed;
    reversed.clear();
    for (size_t end = num; end > 0;) {
      const int32_t id = work.best[end].id;
      if (id != unknown_id_) {
        reversed.push_back(id);
        end -= piece_characters_[id];
        continue;
      }
      --end;
      uint32_t point = dummy_prefix_ && end == 0 ? kSpaceSymbol : static_cast<uint32_t>(text[end - dummy_prefix_]);
      if (is_surrogate(point)) throw std::invalid_argument("a lone surrogate, which UTF-8 cannot hold");
      if (byte_fallback_) {
        uint8_t bytes[4];
        for (int b = encode_one(point == ' ' ? kSpaceSymbol : point, bytes); b > 0;) reversed.push_back(byte_ids_[bytes[--b]]);
      } else if (reversed.empty() || reversed.back() != unknown_id_) {
        reversed.push_back(id);
      }
    }
    out.insert(out.end(), reversed.rbegin(), reversed.rend());
  }

  static constexpr size_t kMinKept = 3, kLookAhead = 6;
  bool dummy_prefix_, byte_fallback_, keeps_words_ = true;
  float unknown_score_ = 0;
  int32_t unknown_id_ = -1;
  std::vector<int32_t> byte_ids_;
  std::vector<uint32_t> piece_characters_;
  std::vector<float> scores_;
  std::vector<double> old_scores_;
  std::vector<uint16_t> rank_of_;
  std::vector<State> states_;
  Neighbours neighbours_;
};

}  // namespace jmed
