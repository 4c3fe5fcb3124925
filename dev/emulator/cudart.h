// Inside the emulator: how the CUDA runtime's functions report. What a correct program can meet (no
// memory, no device) is a status; mistakes are thrown as Error, which names them better.
#pragma once

#include <cuda_runtime_api.h>

#include <exception>

#include "dev/emulator/runtime.h"
#include "dev/emulator/scheduler.h"

namespace emulator {

// Returns the status; cudaGetLastError gives it again once.
cudaError_t remember(cudaError_t status);

// The status of a call that a stream's capture forbids. It spoils the capture, as on a device.
cudaError_t refuse_in_capture();

// For functions that destructors call: errors wait for the next function that may throw.
template <typename F>
cudaError_t without_throwing(F&& f) {
    try {
        f();
    } catch (const Error& error) {
        add_pending_error(error.what());
    }
    return cudaSuccess;
}

// For functions that wait: their own errors, and those that could not be thrown before. While
// another exception is on its way, none may follow.
template <typename F>
cudaError_t synchronously(F&& f) {
    if (std::uncaught_exceptions() > 0) return without_throwing(f);
    f();
    report_pending_error();
    return cudaSuccess;
}

}  // namespace emulator
