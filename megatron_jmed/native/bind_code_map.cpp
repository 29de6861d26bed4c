// Character tables for Python.
//
// In: the table, and the Python function str -> str that it was made from. Out: a CodeMap that gives for a list of str
// what the function would. The interpreter's lock is free except while the function maps a run it has not seen before.
#include "bindings.hpp"
#include "code_map.hpp"

namespace jmed {
namespace {

using Numbers = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

py::str as_str(const uint32_t* points, size_t num_points) {
  PyObject* made = PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, points, static_cast<Py_ssize_t>(num_points));
  if (!made) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(made);
}

Points call(const py::function& form, const Points& run) {
  const py::gil_scoped_acquire locked;
  const py::str formed = form(as_str(run.data(), run.size()));
  return with_characters(text_of(formed.ptr(), 0), [](auto* at, size_t length) { return Points(at, at + length); });
}

py::list map_all(const CodeMap& map, const py::list& list, bool one_space) {
  const py::tuple held(list);  // another thread may change the list meanwhile
  const std::vector<Text> texts = texts_of(held);
  py::list mapped;
  Points points;
  for (const Text& text : texts) {
    bool sure;
    {
      const py::gil_scoped_release unlocked;
      sure = with_characters(text, [&](auto* characters, size_t length) { return map.map(characters, length, points); });
      if (sure && one_space) {
        size_t size = 0;
        for (const uint32_t point : points)
          if (point != ' ' || (size > 0 && points[size - 1] != ' ')) points[size++] = point;
        points.resize(size > 0 && points[size - 1] == ' ' ? size - 1 : size);
      }
    }
    mapped.append(sure ? py::object(as_str(points.data(), points.size())) : py::none());
  }
  return mapped;
}

}  // namespace

void bind_code_map(py::module_& module) {
  py::class_<CodeMap>(module, "CodeMap")
      .def(py::init([](const Numbers& entries, const Numbers& expansions, py::function form) {
             return std::make_unique<CodeMap>(as_vector(entries), as_vector(expansions), [form](const Points& run) {
               return call(form, run);
             });
           }),
           py::arg("entries"), py::arg("expansions"), py::arg("form"))
      .def("map", &map_all, py::arg("texts"), py::kw_only(), py::arg("one_space") = false,
           "What each text becomes, or None where the table is unsure; with one_space, runs of spaces become one and those "
           "at both ends go.")
      .attr("EXPANSION") = kExpansion;
  const py::object kind = module.attr("CodeMap");
  kind.attr("JOINING") = kJoining;
  kind.attr("UNSURE") = kUnsure;
  kind.attr("OFFSET_BITS") = kOffsetBits;
}

}  // namespace jmed
