// The screen before decontamination, for Python.
//
// In: a list of str. Out: for each whether a question may stand in it (bool). The interpreter's lock is free meanwhile.
#include "bindings.hpp"
#include "screen.hpp"

namespace jmed {
namespace {

template <class Value>
using Array = py::array_t<Value, py::array::c_style | py::array::forcecast>;

py::array_t<bool> may_hold(const Screen& screen, const CodeMap& map, const py::list& list) {
  const py::tuple held(list);  // another thread may change the list meanwhile
  const std::vector<Text> texts = texts_of(held);
  py::array_t<bool> answers(static_cast<py::ssize_t>(texts.size()));
  bool* const answer = answers.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    Screen::Workspace work;
    for (size_t number = 0; number < texts.size(); ++number)
      answer[number] = with_characters(
          texts[number], [&](auto* at, size_t length) { return screen.may_hold(map, at, length, work); });
  }
  return answers;
}

}  // namespace

void bind_screen(py::module_& module) {
  py::class_<GramTable>(module, "GramTable")
      .def(py::init([](int n, const Array<uint64_t>& keys, const Array<uint32_t>& begins, const Array<uint32_t>& questions,
                       const Array<double>& num_needed, const Array<uint32_t>& windows) {
             return GramTable(n, as_vector(keys), as_vector(begins), as_vector(questions), as_vector(num_needed),
                              as_vector(windows));
           }),
           py::arg("n"), py::arg("keys"), py::arg("begins"), py::arg("questions"), py::arg("num_needed"), py::arg("windows"));
  py::class_<Screen>(module, "Screen")
      .def(py::init<GramTable, GramTable, uint32_t, size_t, size_t, size_t>(), py::arg("characters"), py::arg("words"),
           py::arg("first_japanese"), py::arg("num_letters"), py::arg("step"), py::arg("overlap"))
      .def("may_hold", &may_hold, py::arg("code_map"), py::arg("texts"));
}

}  // namespace jmed
