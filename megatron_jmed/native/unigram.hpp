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
// Invariant: a text's ids depend on that text alone.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

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

// Memory that the texts of one call share.
struct Workspace {
  struct Best {
    float score;
    int32_t id;  // the piece that ends here on the best way, or -1: nothing ends here yet
  };
  std::vector<uint16_t> ranks;
  std::vector<Best> best;
  std::vector<uint32_t> points;
  std::vector<int32_t> reversed;
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
    states_ = TrieBuilder(std::move(keys), num_ranks).build();
  }

  size_t num_pieces() const { return piece_characters_.size(); }
  size_t num_states() const { return states_.size(); }

  // The ids of one text, last first, in work.reversed; throws std::invalid_argument on a lone surrogate.
  template <class Character>
  void encode(const Character* text, size_t num_characters, Family family, Workspace& work) const {
    work.reversed.clear();
    if (num_characters == 0) return;
    prepare(text, num_characters, work);
    if (family == Family::kFloat)
      find_best<Family::kFloat>(num_characters + dummy_prefix_, work);
    else
      find_best<Family::kDouble>(num_characters + dummy_prefix_, work);
    trace_back(text, num_characters + dummy_prefix_, work);
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

  template <class Character>
  void prepare(const Character* text, size_t num_characters, Workspace& work) const {
    const size_t num = num_characters + dummy_prefix_;
    if (work.best.size() < num + 1) {
      work.best.resize(num + 1);
      work.ranks.resize(num + kLookAhead + 2);
    }
    uint16_t* rank = work.ranks.data();
    if (dummy_prefix_) *rank++ = rank_of_[kSpaceSymbol];
    for (size_t i = 0; i < num_characters; ++i) rank[i] = rank_of_[static_cast<uint32_t>(text[i])];
    std::fill(rank + num_characters, rank + num_characters + kLookAhead + 1, uint16_t{0});
    std::fill(work.best.begin(), work.best.begin() + static_cast<ptrdiff_t>(num) + 1, Workspace::Best{0, -1});
  }

  template <Family family>
  void find_best(size_t num, Workspace& work) const {
    using Score = std::conditional_t<family == Family::kFloat, float, double>;
    const State* const states = states_.data();
    const uint16_t* const ranks = work.ranks.data();
    Workspace::Best* const best = work.best.data();
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
      const float here = best[i].score;
      int32_t at = ranks[i];
      const State* state = &states[at];
      size_t end = i + 1;
      if (state->id >= 0)
        offer(best[end], score_of<Score>(*state) + here, state->id);
      else
        offer(best[end], unknown_score_ + here, unknown_id_);
      while (state->base && end < num) {
        const int32_t next = state->base + ranks[end];
        state = &states[next];
        if (state->check != at) break;
        at = next;
        ++end;
        if (state->id >= 0) offer(best[end], score_of<Score>(*state) + here, state->id);
      }
      furthest = std::max(furthest, end);
    }
  }

  template <class Score>
  Score score_of(const State& state) const {
    if constexpr (std::is_same_v<Score, float>) return state.score;
    return static_cast<Score>(old_scores_[state.id]);
  }

  template <class Character>
  void trace_back(const Character* text, size_t num, Workspace& work) const {
    std::vector<int32_t>& out = work.reversed;
    for (size_t end = num; end > 0;) {
      const int32_t id = work.best[end].id;
      if (id != unknown_id_) {
        out.push_back(id);
        end -= piece_characters_[id];
        continue;
      }
      --end;
      uint32_t point = dummy_prefix_ && end == 0 ? kSpaceSymbol : static_cast<uint32_t>(text[end - dummy_prefix_]);
      if (is_surrogate(point)) throw std::invalid_argument("a lone surrogate, which UTF-8 cannot hold");
      if (byte_fallback_) {
        uint8_t bytes[4];
        for (int b = encode_one(point == ' ' ? kSpaceSymbol : point, bytes); b > 0;) out.push_back(byte_ids_[bytes[--b]]);
      } else if (out.empty() || out.back() != unknown_id_) {
        out.push_back(id);
      }
    }
  }

  static constexpr size_t kLookAhead = 6;
  bool dummy_prefix_, byte_fallback_;
  float unknown_score_ = 0;
  int32_t unknown_id_ = -1;
  std::vector<int32_t> byte_ids_;
  std::vector<uint32_t> piece_characters_;
  std::vector<float> scores_;
  std::vector<double> old_scores_;
  std::vector<uint16_t> rank_of_;
  std::vector<State> states_;
};

}  // namespace jmed
