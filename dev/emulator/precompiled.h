// What every kernel includes, compiled once for all of them (Makefile).
#include "llmc/cuda/tensor_table.cuh"
