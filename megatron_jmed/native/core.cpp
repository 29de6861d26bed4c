// The door between Python and the native core: megatron_jmed.native._core. Each bind_*.cpp brings one subject.
#include "bindings.hpp"

namespace {

// Raise it with every change of what the core returns; it is part of a token set's record.
constexpr const char* kVersion = "2";

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native core of the text world.";
  module.attr("VERSION") = kVersion;
  jmed::bind_scan(module);
  jmed::bind_unigram(module);
  jmed::bind_code_map(module);
  jmed::bind_minhash(module);
  jmed::bind_screen(module);
}
