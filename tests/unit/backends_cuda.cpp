// The backend tests of cuda_tests run on the CUDA backend: on the emulator or on a GPU.
#include "tests/unit/backend_test.h"

namespace lmo {

std::vector<std::string> test_backends() { return {"cuda"}; }

// With dependent launch where the device has it: then the emulator checks that every kernel waits
// for those ahead of it.
std::unique_ptr<Backend> make_test_backend(const std::string&, int) {
    std::unique_ptr<Backend> backend = make_cuda_backend();
    backend->set_dependent_launch(true);
    return backend;
}

}  // namespace lmo
