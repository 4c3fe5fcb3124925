// The same for the unit tests.
#include <gtest/gtest.h>

#include <fstream>

#include "llmc/precompiled.h"
