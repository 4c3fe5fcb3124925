// What every kernel includes, compiled once for all of them (Makefile).
#pragma once

#include "llmc/cuda/tensor_table.cuh"
