// Prints dev/docs/config.md (`make docs`).

#include <cstdio>

#include "llmc/train/config.h"

int main() {
    std::fputs(lmo::config_reference().c_str(), stdout);
    return 0;
}
