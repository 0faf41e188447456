// Draws the picture of a TorchScript file that dip-fast wrote: draw MODEL.pt OUT.ppm [libdip_fast_ops.so]
//
// Plain libtorch is enough.  A file written with --fused-ops calls dip-fast's operators; name the library that has
// them.  The picture is written as PPM, or PGM where it is gray, in 8 or 16 bits.  Load only files that you trust.
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/script.h>

#include <fstream>
#include <iostream>

int main(int count, char** arguments) {
  if (count < 3 || count > 4) {
    std::cerr << "usage: draw MODEL.pt OUT.ppm [libdip_fast_ops.so]\n";
    return 2;
  }
  if (count == 4 && dlopen(arguments[3], RTLD_NOW | RTLD_GLOBAL) == nullptr) {  // registers the operators
    std::cerr << "draw: " << dlerror() << '\n';
    return 2;
  }
  try {
    const c10::InferenceMode inference;
    at::set_num_threads(1);  // as the file was run when it was written: the same bits
    torch::jit::ExtraFilesMap metadata{{"dip_fast", ""}};
    torch::jit::Module model = torch::jit::load(arguments[1], at::kCPU, metadata);
    const at::Tensor picture = model.forward({}).toTensor();  // (H, W, C), float32, in the picture's range
    const std::string& facts = metadata["dip_fast"];
    const bool wide = facts.find("\"bit_depth\": 16") != std::string::npos;
    if (!wide && facts.find("\"bit_depth\": 8") == std::string::npos) {
      throw std::runtime_error("PPM has no float samples");
    }
    const int64_t largest = wide ? 65535 : 255;
    const at::Tensor samples = picture.round().clamp(0, largest).to(at::kInt).contiguous();
    std::ofstream file(arguments[2], std::ios::binary);
    file << (picture.size(2) == 3 ? "P6" : "P5") << '\n'
         << picture.size(1) << ' ' << picture.size(0) << '\n'
         << largest << '\n';
    const int* sample = samples.data_ptr<int>();
    for (int64_t i = 0; i < samples.numel(); ++i) {
      if (wide) file.put(static_cast<char>(sample[i] >> 8));
      file.put(static_cast<char>(sample[i]));
    }
    if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + arguments[2]);
  } catch (const std::exception& error) {
    std::cerr << "draw: " << error.what() << '\n';
    return 1;
  }
}
