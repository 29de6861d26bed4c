// MinHash signatures for Python.
//
// In: a list of str, and for each the kind of its units (0 characters, 1 words, 2 by script). Out: signatures, uint32
// [texts, functions]; and the UTF-8 of all comparison forms without their spaces, end to end, with the end of each.
// The interpreter's lock is free meanwhile.
#include "bindings.hpp"
#include "code_map.hpp"
#include "minhash.hpp"

namespace jmed {
namespace {

using Numbers = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

void append_utf8(const Points& points, size_t number, std::string& bytes) {
  const size_t begin = bytes.size();
  bytes.resize(begin + 4 * points.size());
  auto* at = reinterpret_cast<uint8_t*>(&bytes[begin]);
  for (const uint32_t point : points) {
    if (point < 0x80) {
      *at++ = static_cast<uint8_t>(point);
      continue;
    }
    if (is_surrogate(point))
      throw std::invalid_argument("text " + std::to_string(number) + " holds a lone surrogate, which UTF-8 cannot hold");
    at += encode_one(point, at);
  }
  bytes.resize(static_cast<size_t>(reinterpret_cast<char*>(at) - bytes.data()));
}

py::tuple sign(const Signer& signer, const CodeMap& map, const py::list& list, const py::bytes& units) {
  const py::tuple held(list);  // another thread may change the list meanwhile
  const std::vector<Text> texts = texts_of(held);
  const std::string kinds(units);
  if (kinds.size() != texts.size()) throw std::invalid_argument("one kind of unit is needed for each text");
  py::array_t<uint32_t> signatures({texts.size(), signer.num_functions()});
  uint32_t* const rows = signatures.mutable_data();
  std::string symbols;
  std::vector<int64_t> ends;
  {
    const py::gil_scoped_release unlocked;
    Points points;
    SignWorkspace work;
    for (size_t number = 0; number < texts.size(); ++number) {
      const auto nothing_but_spaces = [&] {
        return std::all_of(points.begin(), points.end(), [](uint32_t point) { return point == ' '; });
      };
      with_characters(texts[number], [&](auto* at, size_t length) {
        if (!map.map(at, length, points)) throw std::logic_error("a table for signatures must be sure of all characters");
        // A text of invisible characters alone is compared as it is.
        if (nothing_but_spaces()) points.assign(at, at + length);
      });
      if (kinds[number] < 0 || kinds[number] > 2) throw std::invalid_argument("a unit is 0, 1 or 2");
      signer.sign(points, static_cast<Unit>(kinds[number]), rows + number * signer.num_functions(), work);
      append_utf8(points, number, symbols);
      ends.push_back(static_cast<int64_t>(symbols.size()));
    }
  }
  return py::make_tuple(signatures, py::bytes(symbols), as_array(std::move(ends)));
}

}  // namespace

void bind_minhash(py::module_& module) {
  py::class_<Signer>(module, "Signer")
      .def(py::init([](int ngram, const Numbers& factors, const Numbers& summands,
                       const py::array_t<uint8_t, py::array::c_style | py::array::forcecast>& is_word,
                       const std::string& vectors) {
             const std::vector<bool> marks(is_word.data(), is_word.data() + is_word.size());
             return Signer(ngram, as_vector(factors), as_vector(summands), marks, vectors);
           }),
           py::arg("ngram"), py::arg("factors"), py::arg("summands"), py::arg("is_word"), py::arg("vectors") = "")
      .def("sign", &sign, py::arg("code_map"), py::arg("texts"), py::arg("units"),
           "(signatures, UTF-8 of the comparison forms without spaces end to end, the end of each).")
      .def_static("vectors", [] {
        std::vector<std::string> names;
        for (const auto& kind : vector_kinds()) names.push_back(kind.first);
        return names;
      }, "The kinds of vectors that this machine has, widest first.");
}

}  // namespace jmed
