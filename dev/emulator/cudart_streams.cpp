// The CUDA runtime's functions for streams, events, captures and graphs.
#include <cuda_runtime_api.h>

#include "dev/emulator/cudart.h"
#include "dev/emulator/memory.h"
#include "dev/emulator/scheduler.h"
#include "dev/emulator/streams.h"

using namespace emulator;

extern "C" {

// ---- streams ------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    *stream = make_stream(flags != cudaStreamNonBlocking);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return without_throwing([&] { destroy_stream(stream); });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    Stream& own = find_stream(stream);
    if (own.capture) return refuse_in_capture();
    return synchronously([&] { wait_for(own); });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Stream& own = find_stream(stream);
    if (own.capture) return refuse_in_capture();
    if (own.queue.empty()) return cudaSuccess;
    const cudaError_t status = synchronously([] { let_time_pass(); });
    return status == cudaSuccess ? cudaErrorNotReady : status;
}

cudaError_t cudaDeviceSynchronize() {
    if (any_capture()) return refuse_in_capture();
    return synchronously([] {
        wait_for_all();
        check_canaries();
    });
}

// ---- events -------------------------------------------------------------------------------------

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = reinterpret_cast<cudaEvent_t>(new auto(std::make_shared<Event>()));
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete &find_event(event);
    return cudaSuccess;
}

// Inside of a capture, events that connect it with other streams are external nodes of the graph.
// CUDA also has events of dependencies within a graph; the emulator's graphs have one order.
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    Stream& on = find_stream(stream);
    const bool external = flags == cudaEventRecordExternal;
    if (!external && on.capture) return refuse_in_capture();
    if (external && !on.capture) return remember(cudaErrorInvalidValue);
    if (external) {
        on.capture->work.push_back({nullptr, find_event(event), nullptr});
    } else {
        issue_record(on, find_event(event));
    }
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    Stream& on = find_stream(stream);
    const bool external = flags == cudaEventWaitExternal;
    if (!external && on.capture) return refuse_in_capture();
    if (external && !on.capture) return remember(cudaErrorInvalidValue);
    if (external) {
        on.capture->work.push_back({nullptr, nullptr, find_event(event)});
    } else {
        issue_wait(on, find_event(event));
    }
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    const Event* own = find_event(event).get();
    return own->reached < own->recorded ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (any_capture()) return refuse_in_capture();
    return synchronously([&] { wait_for(*find_event(event)); });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    const Event* first = find_event(from).get();
    const Event* second = find_event(to).get();
    if (first->recorded == 0 || second->recorded == 0)
        return remember(cudaErrorInvalidResourceHandle);
    if (first->reached < first->recorded || second->reached < second->recorded) {
        return cudaErrorNotReady;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(second->time - first->time).count();
    return cudaSuccess;
}

// ---- captures and graphs ------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (!stream) return remember(cudaErrorStreamCaptureUnsupported);
    Stream& own = find_stream(stream);
    if (own.capture) return remember(cudaErrorIllegalState);
    own.capture = std::make_unique<Recording>();
    own.capture_broken = false;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = nullptr;
    Stream& own = find_stream(stream);
    if (!own.capture) return remember(cudaErrorIllegalState);
    const auto recording = std::move(own.capture);
    if (own.capture_broken) return remember(cudaErrorStreamCaptureInvalidated);
    *graph = reinterpret_cast<cudaGraph_t>(new Recording(*recording));
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    const Stream& own = find_stream(stream);
    *status = !own.capture         ? cudaStreamCaptureStatusNone
              : own.capture_broken ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
    *executable = nullptr;
    if (!graph) return remember(cudaErrorInvalidValue);
    *executable = reinterpret_cast<cudaGraphExec_t>(
        new Recording(*reinterpret_cast<const Recording*>(graph)));
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    if (!executable) return remember(cudaErrorInvalidValue);
    for (const Recorded& next : reinterpret_cast<Recording*>(executable)->work) {
        if (next.reached) {
            issue_record(find_stream(stream), next.reached);
        } else if (next.awaited) {
            issue_wait(find_stream(stream), next.awaited);
        } else {
            enqueue(stream, next.run);
        }
    }
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Recording*>(graph);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete reinterpret_cast<Recording*>(executable);
    return cudaSuccess;
}

}  // extern "C"
