// The backend tests of unit_tests run on the CPU.
#include "tests/unit/backend_test.h"

namespace lmo {

std::vector<std::string> test_backends() { return {"cpu"}; }

std::unique_ptr<Backend> make_test_backend(const std::string&, int threads) {
    return make_cpu_backend(threads);
}

}  // namespace lmo
