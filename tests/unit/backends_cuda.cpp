// The backend tests of cuda_tests run on the CUDA backend: on the emulator or on a GPU.
#include "tests/unit/backend_test.h"

namespace lmo {

std::vector<std::string> test_backends() { return {"cuda"}; }

std::unique_ptr<Backend> make_test_backend(const std::string&, int) { return make_cuda_backend(); }

}  // namespace lmo
