// The Python module of the extension: what it offers besides the operators, namely how it was built, which kernels run,
// the threads and the workspace.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/threads.h"
#include "workspace.h"

namespace {

// Without -fopenmp at::parallel_for compiles to a plain loop, silently.
bool is_parallel() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

bool has_cuda() {
#ifdef DIP_FAST_CUDA
  return true;
#else
  return false;
#endif
}

pybind11::dict build_information() {
  pybind11::dict info;
  info["torch"] = DIP_FAST_TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["parallel"] = is_parallel();
  info["cuda"] = has_cuda();
  return info;
}

pybind11::list cpu_levels() {
  pybind11::list names;
  for (const dip_fast::cpu::Level& level : dip_fast::cpu::levels())
    if (level.is_supported()) names.append(level.name);
  return names;
}

// A context manager around dip_fast::cpu::OwnThreads.
struct OwnThreadsContext {
  std::optional<dip_fast::cpu::OwnThreads> entered;
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  dip_fast::cpu::level();  // so that a wrong DIP_FAST_CPU is an error here and not at the first call
  m.def("build_information", &build_information,
        "The versions of torch and the compiler; whether loops are parallel; whether there are CUDA kernels.");
  m.def("cpu_levels", &cpu_levels, "The instruction sets that this CPU supports, slowest first.");
  m.def("cpu_level", [] { return dip_fast::cpu::level().name; }, "The instruction set whose kernels are in use.");
  m.def(
      "select_cpu_level", [](const std::string& name) { dip_fast::cpu::select_level(name.c_str()); },
      "Use the kernels of another instruction set from here on; ValueError if this CPU does not support it.",
      pybind11::arg("name"));
  pybind11::class_<OwnThreadsContext>(
      m, "OwnThreads", "While entered, the operators that this thread calls run on threads of their own.")
      .def(pybind11::init<>())
      .def("__enter__", [](OwnThreadsContext& self) { self.entered.emplace(); })
      .def("__exit__", [](OwnThreadsContext& self, const pybind11::args&) { self.entered.reset(); });
  m.def("hold_workspace", &dip_fast::workspace::hold,
        "Keep freed memory of images until release_workspace has been called as often as this function.");
  m.def("release_workspace", &dip_fast::workspace::release, "Undo one call of hold_workspace.");
  m.def("workspace_bytes", &dip_fast::workspace::kept_bytes, "Bytes of memory for images, free or in use.");
  m.def("workspace_blocks", &dip_fast::workspace::system_blocks,
        "How many blocks of such memory the system has been asked for.");
}
