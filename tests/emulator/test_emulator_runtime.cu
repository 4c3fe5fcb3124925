// The emulator's stand-in for the CUDA runtime: memory, streams and events in every order, graphs,
// refused launches, and tensors that are mostly not there.
#include <cmath>

#include "tests/emulator/emulator_test.h"

namespace lmo::cuda {
namespace {

using emulator::Blocks;
using emulator::settings;
using emulator::SettingsGuard;
using emulator::StreamOrder;

// ---- memory -------------------------------------------------------------------------------------

__global__ void add_kernel(int* out, const int* in, int count, int value) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) out[i] = in[i] + value;
}

TEST(Emulator, AllocationsAreAlignedAndCounted) {
    size_t before = 0, now = 0, total = 0;
    cudaMemGetInfo(&before, &total);
    void* memory[3];
    for (void*& m : memory) {
        ASSERT_EQ(cudaMalloc(&m, 1000), cudaSuccess);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(m) % 256, 0u);
    }
    cudaMemGetInfo(&now, &total);
    EXPECT_EQ(before - now, 3000u);
    EXPECT_EQ(emulator::live_allocations(), "3 allocations, 3000 bytes");
    for (void* m : memory) cudaFree(m);
    cudaMemGetInfo(&now, &total);
    EXPECT_EQ(before, now);
    EXPECT_EQ(emulator::live_allocations(), "");
}

TEST(Emulator, ADeviceWithoutMemorySaysSo) {
    const SettingsGuard guard;
    settings().device_bytes = 1000;
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, 1001), cudaErrorMemoryAllocation);
    EXPECT_EQ(memory, nullptr);
    EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_STREQ(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
    EXPECT_STREQ(cudaGetErrorName(cudaErrorMemoryAllocation), "cudaErrorMemoryAllocation");
}

#ifndef LMO_EMULATOR_RACE  // there, reading it is an error
TEST(Emulator, FreshMemoryIsNoNumber) {
    float* memory;
    cudaMalloc(reinterpret_cast<void**>(&memory), 400);
    std::vector<float> values(100);
    cudaMemcpy(values.data(), memory, 400, cudaMemcpyDeviceToHost);
    for (float value : values) EXPECT_TRUE(std::isnan(value));
    cudaFree(memory);
}
#endif

TEST(Emulator, CopiesCheckTheirRanges) {
    Array<int> array(10);
    std::vector<int> host(11);
    EXPECT_ERROR("not within one live allocation",
                 cudaMemcpy(host.data(), array.data(), 44, cudaMemcpyDeviceToHost));
    EXPECT_ERROR("pointer of the device",
                 cudaMemcpy(array.data(), array.data(), 40, cudaMemcpyHostToDevice));
    EXPECT_ERROR("not within one live allocation",
                 cudaMemcpy(host.data(), array.data(), 40, cudaMemcpyHostToDevice));
    EXPECT_ERROR("not within one live allocation", cudaMemset(host.data(), 0, 40));
    EXPECT_ERROR("not within one live allocation", cudaMemset(array.data() + 1, 0, 40));
}

#ifndef LMO_EMULATOR_ASAN  // it would end the process
__global__ void overrun_kernel(int* out, int index) { out[index] = 1; }

TEST(Emulator, AccessesOutsideOfAllocations) {
    int* memory;
    const auto write = [&](int index) {
        return message_of(
            [&] { launch(LMO_KERNEL(overrun_kernel), 1, 1, 0, nullptr, memory, index); });
    };
    for (const int index : {10, 5000, -1500, 1 << 28}) {
        cudaMalloc(reinterpret_cast<void**>(&memory), 40);
        EXPECT_NE(write(index), "no error") << index;
        EXPECT_EQ(write(9), "no error");
        cudaFree(memory);
        EXPECT_NE(write(9), "no error") << "released";
    }
}

__global__ void shared_overrun_kernel(int index) {
    LMO_SHARED(int, first, [10]);
    LMO_SHARED(int, second, [10]);
    LMO_DYNAMIC_SHARED(int, dynamic);
    first[0] = second[0] = dynamic[0] = 0;
    (index < 0 ? dynamic : second)[index < 0 ? -index : index] = 1;
}

TEST(Emulator, AccessesOutsideOfSharedArrays) {
    for (const int index : {10, 20, -10, -256}) {
        EXPECT_NE(message_of(
                      [&] { launch(LMO_KERNEL(shared_overrun_kernel), 1, 1, 40, nullptr, index); }),
                  "no error")
            << index;
    }
}
#endif

TEST(Emulator, MistakesOfReleasesAreReportedAtTheNextWait) {
    int local = 0;
    cudaFree(&local);
    EXPECT_ERROR("not allocated", cudaDeviceSynchronize());
    EXPECT_EQ(message_of([] { cudaDeviceSynchronize(); }), "no error");
}

// ---- streams, events, graphs --------------------------------------------------------------------

class InEveryStreamOrder : public ::testing::TestWithParam<std::tuple<StreamOrder, int>> {
  protected:
    InEveryStreamOrder() {
        settings().streams = std::get<0>(GetParam());
        settings().seed = static_cast<uint64_t>(std::get<1>(GetParam()));
        for (cudaStream_t& stream : streams_) {
            cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        }
        cudaEventCreate(&event_);
    }
    ~InEveryStreamOrder() override {
        cudaEventDestroy(event_);
        for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
    }
    bool deferred() const { return settings().streams != StreamOrder::eager; }

    cudaStream_t streams_[2];
    cudaEvent_t event_;

  private:
    const SettingsGuard guard_;
};
INSTANTIATE_TEST_SUITE_P(
    Orders, InEveryStreamOrder,
    ::testing::Combine(::testing::Values(StreamOrder::eager, StreamOrder::random,
                                         StreamOrder::first, StreamOrder::last),
                       ::testing::Values(1, 2, 3)));

TEST_P(InEveryStreamOrder, EventsOrderStreams) {
    Array<int> a(300), b(300);
    for (int i = 0; i < 3; ++i) {
        launch(LMO_KERNEL(add_kernel), 2, 256, 0, streams_[i % 2], b.data(), a.data(), 300, 1);
        cudaEventRecord(event_, streams_[i % 2]);
        cudaStreamWaitEvent(streams_[1 - i % 2], event_, 0);
        launch(LMO_KERNEL(add_kernel), 2, 256, 0, streams_[1 - i % 2], a.data(), b.data(), 300, 10);
    }
    cudaEventRecord(event_, streams_[1]);
    EXPECT_EQ(cudaEventQuery(event_), deferred() ? cudaErrorNotReady : cudaSuccess);
    cudaEventSynchronize(event_);
    EXPECT_EQ(cudaEventQuery(event_), cudaSuccess);
    cudaDeviceSynchronize();
    EXPECT_EQ(a.values(), std::vector<int>(300, 33));
}

// Events inside of graphs are those of the moment of a launch.
TEST_P(InEveryStreamOrder, EventsOrderGraphs) {
    Array<int> a(300), b(300);
    cudaEvent_t back;
    cudaEventCreate(&back);
    EXPECT_EQ(cudaEventRecordWithFlags(event_, streams_[0], cudaEventRecordExternal),
              cudaErrorInvalidValue);
    EXPECT_EQ(cudaStreamWaitEvent(streams_[0], event_, cudaEventWaitExternal),
              cudaErrorInvalidValue);
    (void)cudaGetLastError();
    cudaStreamBeginCapture(streams_[0], cudaStreamCaptureModeThreadLocal);
    cudaStreamWaitEvent(streams_[0], back, cudaEventWaitExternal);
    launch(LMO_KERNEL(add_kernel), 2, 256, 0, streams_[0], b.data(), a.data(), 300, 1);
    cudaEventRecordWithFlags(event_, streams_[0], cudaEventRecordExternal);
    cudaGraph_t graph;
    ASSERT_EQ(cudaStreamEndCapture(streams_[0], &graph), cudaSuccess);
    cudaGraphExec_t executable;
    cudaGraphInstantiate(&executable, graph, 0);
    EXPECT_EQ(cudaEventQuery(event_), cudaSuccess);  // recorded into the graph, not reached
    for (int i = 0; i < 3; ++i) {
        cudaGraphLaunch(executable, streams_[0]);
        cudaStreamWaitEvent(streams_[1], event_, 0);
        launch(LMO_KERNEL(add_kernel), 2, 256, 0, streams_[1], a.data(), b.data(), 300, 10);
        cudaEventRecord(back, streams_[1]);
    }
    cudaDeviceSynchronize();
    EXPECT_EQ(a.values(), std::vector<int>(300, 33));
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaEventDestroy(back);
}

// As on a device, work is done while somebody asks for it again and again.
TEST_P(InEveryStreamOrder, WhoAsksWillHear) {
    Array<int> a(300), b(300);
    for (int i = 0; i < 3; ++i) {
        launch(LMO_KERNEL(add_kernel), 2, 256, 0, streams_[0], b.data(), a.data(), 300, 1);
    }
    EXPECT_EQ(cudaStreamQuery(streams_[0]), deferred() ? cudaErrorNotReady : cudaSuccess);
    int questions = 0;
    while (cudaStreamQuery(streams_[0]) == cudaErrorNotReady) ++questions;
    EXPECT_LE(questions, 3);
}

TEST_P(InEveryStreamOrder, PageableMemoryIsReadAtTheCall) {
    Array<int> array(1);
    int value = 5, result = 0;
    cudaMemcpyAsync(array.data(), &value, 4, cudaMemcpyHostToDevice, streams_[0]);
    value = 6;
    cudaMemcpyAsync(&result, array.data(), 4, cudaMemcpyDeviceToHost, streams_[0]);
    EXPECT_EQ(result, deferred() ? 0 : 5);
    cudaStreamSynchronize(streams_[0]);
    EXPECT_EQ(result, 5);
}

TEST_P(InEveryStreamOrder, TheDefaultStreamWaitsForBlockingStreams) {
    cudaStream_t blocking;
    cudaStreamCreate(&blocking);
    Array<int> a(300), b(300);
    launch(LMO_KERNEL(add_kernel), 2, 256, 0, blocking, b.data(), a.data(), 300, 1);
    launch(LMO_KERNEL(add_kernel), 2, 256, 0, nullptr, a.data(), b.data(), 300, 1);
    launch(LMO_KERNEL(add_kernel), 2, 256, 0, blocking, b.data(), a.data(), 300, 1);
    cudaDeviceSynchronize();
    EXPECT_EQ(b.values(), std::vector<int>(300, 3));
    cudaStreamDestroy(blocking);
}

TEST_P(InEveryStreamOrder, WorkOutlivesItsStreamAndEvent) {
    Array<int> a(300), b(300);
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaEvent_t event;
    cudaEventCreate(&event);
    launch(LMO_KERNEL(add_kernel), 2, 256, 0, stream, b.data(), a.data(), 300, 1);
    cudaEventRecord(event, stream);
    cudaStreamWaitEvent(streams_[0], event, 0);
    launch(LMO_KERNEL(add_kernel), 2, 256, 0, streams_[0], a.data(), b.data(), 300, 1);
    cudaEventDestroy(event);
    cudaStreamDestroy(stream);
    cudaStreamSynchronize(streams_[0]);
    EXPECT_EQ(a.values(), std::vector<int>(300, 2));
    EXPECT_ERROR("a stream that does not exist", cudaStreamSynchronize(stream));
}

TEST_P(InEveryStreamOrder, AGraphRepeatsWhatWasRecorded) {
    Array<int> a(std::vector<int>(300, 1)), b(300);
    const cudaStream_t stream = streams_[0];
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    launch(LMO_KERNEL(add_kernel), 2, 256, 0, stream, b.data(), a.data(), 300, 1);
    cudaMemcpyAsync(a.data(), b.data(), 1200, cudaMemcpyDeviceToDevice, stream);
    cudaGraph_t graph;
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    cudaGraphExec_t executable;
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    cudaGraphDestroy(graph);
    EXPECT_EQ(b.values(), std::vector<int>(300, 0));  // recording runs nothing
    for (int i = 0; i < 3; ++i) EXPECT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    cudaStreamSynchronize(stream);
    EXPECT_EQ(a.values(), std::vector<int>(300, 4));
    cudaGraphExecDestroy(executable);
}

TEST_P(InEveryStreamOrder, WhatACaptureForbids) {
    Array<int> array(1);
    void* memory = nullptr;
    int value = 0;
    const auto in_capture = [&](const std::function<cudaError_t()>& call) {
        EXPECT_EQ(cudaStreamBeginCapture(streams_[0], cudaStreamCaptureModeThreadLocal),
                  cudaSuccess);
        EXPECT_EQ(call(), cudaErrorStreamCaptureUnsupported);
        cudaGraph_t graph;
        EXPECT_EQ(cudaStreamEndCapture(streams_[0], &graph), cudaErrorStreamCaptureInvalidated);
        EXPECT_EQ(graph, nullptr);
        (void)cudaGetLastError();
    };
    in_capture([&] { return cudaStreamSynchronize(streams_[0]); });
    in_capture([&] { return cudaDeviceSynchronize(); });
    in_capture([&] { return cudaMalloc(&memory, 4); });
    in_capture([&] { return cudaFree(array.data()); });
    in_capture([&] { return cudaMemcpy(&value, array.data(), 4, cudaMemcpyDeviceToHost); });
    EXPECT_EQ(array.values(), std::vector<int>(1));
}

TEST(Emulator, DeferredStreamsShowAMissingWait) {
    const SettingsGuard guard;
    settings().streams = StreamOrder::last;
    cudaStream_t streams[2];
    for (cudaStream_t& stream : streams) cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    Array<int> a(300), b(300), c(300);
    launch(LMO_KERNEL(add_kernel), 2, 256, 0, streams[0], b.data(), a.data(), 300, 1);
    launch(LMO_KERNEL(add_kernel), 2, 256, 0, streams[1], c.data(), b.data(), 300, 1);
    cudaDeviceSynchronize();
    EXPECT_EQ(c.values(), std::vector<int>(300, 1));  // 2 with an event in between
    for (cudaStream_t stream : streams) cudaStreamDestroy(stream);
}

#ifndef LMO_EMULATOR_ASAN  // it would end the process
__global__ void failing_kernel(int* out) { out[threadIdx.x == 3 ? 100000 : 0] = 1; }

TEST_P(InEveryStreamOrder, AnErrorReachesWhoWaits) {
    Array<int> array(1);
    const std::string message = message_of([&] {
        launch(LMO_KERNEL(failing_kernel), 1, 32, 0, streams_[0], array.data());
        cudaStreamSynchronize(streams_[0]);
    });
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "failing_kernel", message);
#ifndef LMO_EMULATOR_RACE  // which finds that two threads write element 0 first
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, "thread (3, 0, 0): access to invalid", message);
#endif
    EXPECT_EQ(message_of([] { cudaDeviceSynchronize(); }), "no error");
}
#endif

// ---- launches -----------------------------------------------------------------------------------

__global__ void empty_kernel() {}
__global__ void shared_kernel(int* out) {
    LMO_SHARED(int, values, [4096]);
    LMO_DYNAMIC_SHARED(int, others);
    values[4095] = 1;
    others[0] = 2;
    out[0] = values[4095] + others[0];
}

TEST(Emulator, LaunchesThatADeviceRefuses) {
    const auto run = [](dim3 grid, dim3 block, size_t shared = 0) {
        emulator::launch("empty", empty_kernel, grid, block, shared, nullptr);
    };
    EXPECT_ERROR("exceeds 1024 threads", run(1, 1056));
    EXPECT_ERROR("exceeds 1024 threads", run(1, dim3(2, 2, 65)));
    EXPECT_ERROR("the block is empty", run(1, 0));
    EXPECT_ERROR("the grid is empty", run(0, 32));
    EXPECT_ERROR("exceeds (2147483647, 65535, 65535)", run(dim3(1, 65536), 32));
    EXPECT_ERROR("exceeds (2147483647, 65535, 65535)", run(dim3(1, 1, 65536), 32));
    EXPECT_ERROR("49153 bytes of dynamic shared memory", run(1, 32, 49153));
    EXPECT_EQ(message_of([&] { run(1, 1024, 49152); }), "no error");
}

TEST(Emulator, LimitsOfSharedMemory) {
    Array<int> out(1);
    const auto function = reinterpret_cast<const void*>(shared_kernel);
    const auto run = [&](size_t bytes) {
        launch(LMO_KERNEL(shared_kernel), 1, 1, bytes, nullptr, out.data());
    };
    EXPECT_ERROR("no cudaFuncSetAttribute", run(40000));  // 16 KB are static
    EXPECT_EQ(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, 300000),
              cudaErrorInvalidValue);
    (void)cudaGetLastError();
    EXPECT_EQ(
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024),
        cudaSuccess);
    run(200 * 1024);
    EXPECT_EQ(out.values()[0], 3);
    EXPECT_ERROR("more than 227 KB", run(220 * 1024));
}

TEST(Emulator, KernelsAreLogged) {
    EXPECT_EQ(emulator::launched_kernels().count("a name of its own"), 0u);
    emulator::launch("a name of its own", empty_kernel, 1, 1, 0, nullptr);
    EXPECT_EQ(emulator::launched_kernels().count("a name of its own"), 1u);
}

TEST(Emulator, NoDevice) {
    const SettingsGuard guard;
    settings().no_device = true;
    int count = 5;
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    EXPECT_EQ(count, 0);
    EXPECT_EQ(cudaSetDevice(0), cudaErrorNoDevice);
    (void)cudaGetLastError();
}

// ---- memory that is mostly not there ------------------------------------------------------------

template <typename Index>
__global__ void far_kernel(uint16_t* out, Index count) {
    const Index i = static_cast<Index>(blockIdx.x) * static_cast<Index>(blockDim.x) +
                    static_cast<Index>(threadIdx.x);
    if (i < count) out[i] = static_cast<uint16_t>(i >> 20);
}

TEST(Emulator, SeveralDevicesToChooseFrom) {
    const SettingsGuard guard;
    settings().devices = 2;
    int count = 0, device = 0;
    EXPECT_EQ(cudaGetDeviceCount(&count), cudaSuccess);
    EXPECT_EQ(count, 2);
    EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
    EXPECT_EQ(cudaSetDevice(1), cudaSuccess);
    EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
    EXPECT_EQ(device, 1);
    cudaDeviceProp first, second;
    EXPECT_EQ(cudaGetDeviceProperties(&first, 0), cudaSuccess);
    EXPECT_EQ(cudaGetDeviceProperties(&second, 1), cudaSuccess);
    EXPECT_NE(0, memcmp(&first.uuid, &second.uuid, sizeof first.uuid));
    EXPECT_EQ(cudaSetDevice(0), cudaSuccess);
    (void)cudaGetLastError();
}

TEST(Emulator, LargeTensorsTakeNoMemory) {
    const SettingsGuard guard;
    settings().blocks = Blocks::first_and_last;
    const int64_t count = (int64_t{1} << 32) + 300;
    uint16_t* memory;
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&memory), count * 2), cudaSuccess);
    EXPECT_EQ(cudaMemset(memory, 0, count * 2), cudaSuccess);
    const auto blocks = static_cast<unsigned>(div_up<int64_t>(count, 256));
    launch(LMO_KERNEL(far_kernel<int64_t>), blocks, 256, 0, nullptr, memory, count);
    uint16_t last[2];
    cudaMemcpy(last, memory + count - 1, 2, cudaMemcpyDeviceToHost);
    cudaMemcpy(last + 1, memory + count - 300, 2, cudaMemcpyDeviceToHost);
    EXPECT_EQ(last[0], 4096);
    EXPECT_EQ(last[1], 0);  // of a block that did not run
    cudaFree(memory);
}

__global__ void narrow_kernel(uint16_t* out) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    out[i] = 1;
}

TEST(Emulator, ANarrowIndexIsFound) {
    const SettingsGuard guard;
    settings().blocks = Blocks::first_and_last;
    const int64_t count = (int64_t{1} << 31) + 256;
    uint16_t* memory;
    ASSERT_EQ(cudaMalloc(reinterpret_cast<void**>(&memory), count * 2), cudaSuccess);
    EXPECT_ERROR("narrow_kernel",
                 launch(LMO_KERNEL(narrow_kernel), static_cast<unsigned>(count / 256), 256, 0,
                        nullptr, memory));
    cudaFree(memory);
}

}  // namespace
}  // namespace lmo::cuda
