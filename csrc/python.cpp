// What Python asks of the extension and is no operator: how it was built, what the CPU has, which kernels run.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>

#include <optional>

#include "cpu/kernels.h"
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
  for (const char* name : {"portable", "avx2", "avx512"})
    if (dip_fast::cpu::has(name)) names.append(name);
  return names;
}

struct OwnThreads {
  std::optional<dip_fast::cpu::OwnThreads> own;
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  dip_fast::cpu::level();  // a wrong DIP_FAST_CPU is an error here, not at the first call
  m.def("build_information", &build_information,
        "The versions of torch and the compiler; whether loops are parallel; whether there are CUDA kernels.");
  m.def("cpu_levels", &cpu_levels, "The kernels that this CPU can run, slowest first.");
  m.def("cpu_level", [] { return dip_fast::cpu::level().name; }, "The kernels in use.");
  m.def(
      "select_cpu_level", [](const std::string& name) { dip_fast::cpu::select(name.c_str()); },
      "Use other kernels from here on; ValueError for those that this CPU lacks.", pybind11::arg("name"));
  pybind11::class_<OwnThreads>(m, "OwnThreads",
                               "While entered, operators called by this thread have their own threads.")
      .def(pybind11::init<>())
      .def("__enter__", [](OwnThreads& self) { self.own.emplace(); })
      .def("__exit__", [](OwnThreads& self, const pybind11::args&) { self.own.reset(); });
  m.def("hold_workspace", &dip_fast::workspace::hold, "Keep freed memory of images until it is released as often.");
  m.def("release_workspace", &dip_fast::workspace::release, "The other half of hold_workspace.");
  m.def("workspace_bytes", &dip_fast::workspace::kept_bytes, "Memory of images, free or in use.");
  m.def("workspace_blocks", &dip_fast::workspace::system_blocks, "How often the system was asked for such memory.");
}
