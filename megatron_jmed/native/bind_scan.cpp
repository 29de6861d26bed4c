// Scanning for Python: classes of characters, words, replacement one for one, different pieces.
//
// In: a str, never copied or changed. Out: tuples and lists of numbers, or a str. What is asked often is settled when the
// object is made, so that a call for a short text costs about a microsecond.
#include <string_view>

#include "bindings.hpp"
#include "scan.hpp"
#include "words.hpp"

namespace jmed {
namespace {

// Call work(pointer to the characters, their number) with the pointer's type as the str is stored.
template <class Work>
auto with_characters(const py::str& text, Work&& work) {
  const Text seen = text_of(text.ptr(), 0);
  if (seen.bytes_per_character == 1) return work(static_cast<const uint8_t*>(seen.data), seen.length);
  if (seen.bytes_per_character == 2) return work(static_cast<const uint16_t*>(seen.data), seen.length);
  return work(static_cast<const uint32_t*>(seen.data), seen.length);
}

// A table that Python hands over as bytes.
template <class Value>
std::vector<Value> table_of(const py::bytes& bytes) {
  const std::string_view view(bytes);
  std::vector<Value> table(view.size() / sizeof(Value));
  std::memcpy(table.data(), view.data(), table.size() * sizeof(Value));
  return table;
}

// How often does a class of one set stand before one of another? (bit n: class n)
using Question = std::pair<uint64_t, uint64_t>;

class Scanner {
 public:
  Scanner(const py::bytes& class_of, uint32_t num_classes, const std::vector<Question>& questions)
      : classes_(table_of<uint8_t>(class_of), num_classes) {
    const uint32_t size = num_classes * num_classes;
    for (const auto& [left, right] : questions) {
      auto& places = places_.emplace_back();
      const bool anything = (left & every_class()) == every_class();  // then the sums over what stands before are enough
      for (uint32_t b = 0; b < num_classes; ++b) {
        if (!(right >> b & 1)) continue;
        if (anything) places.push_back(size + b);
        for (uint32_t a = 0; a < num_classes && !anything; ++a)
          if (left >> a & 1) places.push_back(a * num_classes + b);
      }
    }
  }

  py::tuple count(const py::str& text) {
    with_characters(text, [&](auto* characters, size_t length) { classes_.count(characters, length, work_); });
    const size_t n = classes_.num_classes();
    uint32_t* sums = work_.times.data() + n * n;  // the second table is done with
    std::copy(work_.times.data(), work_.times.data() + n, sums);
    for (size_t a = 1; a < n; ++a)
      for (size_t b = 0; b < n; ++b) sums[b] += work_.times[a * n + b];
    py::tuple answers(places_.size() + 1);
    for (size_t i = 0; i < places_.size(); ++i) {
      size_t sum = 0;
      for (const uint32_t place : places_[i]) sum += work_.times[place];
      answers[i] = py::int_(sum);
    }
    answers[places_.size()] = py::int_(work_.longest_run);
    return answers;
  }

  std::vector<std::pair<size_t, size_t>> stretches(const py::str& text, uint64_t wanted, size_t shortest) const {
    std::vector<std::pair<size_t, size_t>> found;
    with_characters(text,
                    [&](auto* characters, size_t length) { classes_.stretches(characters, length, wanted, shortest, found); });
    return found;
  }

 private:
  uint64_t every_class() const { return ~uint64_t{0} >> (kMaxClasses - classes_.num_classes()); }

  Classes classes_;
  std::vector<std::vector<uint32_t>> places_;
  Neighbours work_;  // used under the interpreter's lock only
};

py::object folded(const Fold& fold, const py::str& text) {
  return with_characters(text, [&](auto* characters, size_t length) -> py::object {
    if (!fold.changes(characters, length)) return text;
    uint32_t highest = 0;
    for (size_t i = 0; i < length; ++i) highest = std::max(highest, fold(characters[i]));
    PyObject* made = PyUnicode_New(static_cast<py::ssize_t>(length), highest);
    if (!made) throw py::error_already_set();
    const int kind = PyUnicode_KIND(made);
    void* data = PyUnicode_DATA(made);
    for (size_t i = 0; i < length; ++i) PyUnicode_WRITE(kind, data, static_cast<py::ssize_t>(i), fold(characters[i]));
    return py::reinterpret_steal<py::object>(made);
  });
}

py::list places_of(const Words& words, const py::str& text) {
  std::vector<std::vector<size_t>> places;
  with_characters(text, [&](auto* characters, size_t length) { words.find(characters, length, places); });
  py::list all(places.size());
  for (size_t group = 0; group < places.size(); ++group)
    all[group] = places[group].empty() ? py::object(py::tuple()) : py::object(py::cast(places[group]));
  return all;
}

}  // namespace

void bind_scan(py::module_& module) {
  py::class_<Scanner>(module, "Scanner")
      .def(py::init<const py::bytes&, uint32_t, const std::vector<Question>&>(), py::arg("class_of"), py::arg("num_classes"),
           py::arg("questions"))
      .def("count", &Scanner::count, "The answer to each question, and the longest run of one character.")
      .def("stretches", &Scanner::stretches, py::arg("text"), py::arg("wanted"), py::arg("shortest"),
           "(start, end) of each longest stretch of wanted classes.");
  py::class_<Words>(module, "Words")
      .def(py::init([](const py::bytes& symbol_of, const std::vector<std::vector<uint16_t>>& words,
                       const std::vector<uint32_t>& group_of) { return Words(table_of<uint16_t>(symbol_of), words, group_of); }),
           py::arg("symbol_of"), py::arg("words"), py::arg("group_of"))
      .def_property_readonly("num_states", &Words::num_states)
      .def("find", &places_of, "For each group the places where one of its words begins, in order.");
  py::class_<Fold>(module, "Fold")
      .def(py::init([](const py::bytes& to) { return Fold(table_of<uint16_t>(to)); }), py::arg("to"))
      .def("__call__", &folded, "The text with its characters replaced; the same object where none is.");
  module.def(
      "num_different_pieces",
      [](const py::str& text, size_t width) {
        return with_characters(
            text, [&](auto* characters, size_t length) { return num_different_pieces(characters, length, width); });
      },
      py::arg("text"), py::arg("width"), "How many different pieces of that many characters a text holds.");
}

}  // namespace jmed
