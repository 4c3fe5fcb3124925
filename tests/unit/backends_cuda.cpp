// The backend tests of cuda_tests run on the CUDA backend: on the emulator or on a GPU.
#include <cstdlib>

#include "tests/unit/backend_test.h"

namespace lmo {

// Kernels of the tests are launched before those ahead of them have ended, where the device can:
// then the emulator checks that each of them waits. LMO_PLAIN_LAUNCH=1 is for a GPU that has
// trouble.
bool launches_may_overlap() {
    const char* plain = std::getenv("LMO_PLAIN_LAUNCH");
    return !plain || *plain != '1';
}

std::vector<std::string> test_backends() { return {"cuda"}; }

std::unique_ptr<Backend> make_test_backend(const std::string&, int) {
    std::unique_ptr<Backend> backend = make_cuda_backend();
    backend->set_dependent_launch(launches_may_overlap());
    return backend;
}

}  // namespace lmo
