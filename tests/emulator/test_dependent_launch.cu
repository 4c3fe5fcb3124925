// Dependent launches: kernels that may start before those ahead of them have ended have to wait for
// them before they touch global memory, and before they end.
#include "llmc/cuda/ptx.cuh"
#include "tests/emulator/emulator_test.h"

namespace lmo::cuda {

namespace {

using emulator::settings;
using emulator::SettingsGuard;

enum Bug { kNone, kNoWait, kEarlyRead, kEarlyWrite, kEarlyStreamingRead, kEarlyCopy, kSomeWait };

// to[i] = from[i] + 1. Shared memory and parameters may be used before the wait.
__global__ void add_kernel(Bug bug, float* to, const float* from, int count) {
    LMO_SHARED(float, ones, [32]);
    LMO_DYNAMIC_SHARED(float, copied);
    const int i = static_cast<int>(threadIdx.x);
    ones[i] = 1.0f;
    float early = 0.0f;
    if (bug == kEarlyRead) early = from[i];
    if (bug == kEarlyWrite) to[i] = 0.0f;
    if (bug == kEarlyStreamingRead) early = load_streaming<1>(from + i)[0];
    if (bug == kEarlyCopy && i < 8) cp_async_16(copied + 4 * i, from + 4 * i);
    if (bug == kSomeWait && i >= count) return;
    if (bug != kNoWait) wait_for_previous();
    if (i < count) to[i] = from[i] + ones[i] + 0.0f * early;
}

constexpr int kCount = 20;

void add(Stream stream, Bug bug, float* to, const float* from) {
    launch(LMO_KERNEL(add_kernel), 1, 32, 128, stream, bug, to, from, kCount);
}

class DependentLaunch : public ::testing::Test {
  protected:
    std::string run(Bug bug, bool dependent) {
        return message_of([&] { add(Stream(nullptr, dependent), bug, to_.data(), from_.data()); });
    }
    Array<float> from_{std::vector<float>(32, 2.0f)}, to_{std::vector<float>(32, 0.0f)};
};

#define EXPECT_PART(part, text) EXPECT_PRED_FORMAT2(::testing::IsSubstring, part, text)

TEST_F(DependentLaunch, CorrectKernels) {
    for (const bool dependent : {false, true}) {
        EXPECT_EQ(run(kNone, dependent), "no error");
        EXPECT_EQ(to_.values()[kCount - 1], 3.0f);
    }
}

// The same kernels are right where each launch waits for the one before.
TEST_F(DependentLaunch, PlainLaunchesNeedNoWait) {
    for (const Bug bug : {kNoWait, kEarlyRead, kEarlyWrite, kEarlyStreamingRead, kSomeWait}) {
        EXPECT_EQ(run(bug, false), "no error") << bug;
    }
}

TEST_F(DependentLaunch, EveryThreadWaits) {
    for (const Bug bug : {kNoWait, kSomeWait}) {
        const std::string text = run(bug, true);
        EXPECT_PART("add_kernel", text);
#ifdef LMO_EMULATOR_RACE
        const bool by_access = bug == kNoWait;
#else
        const bool by_access = false;  // plain accesses are not seen
#endif
        EXPECT_PART(by_access ? "before wait_for_previous()" : "ended without wait_for_previous()",
                    text);
        EXPECT_PART(bug == kNoWait ? "thread (0, 0, 0)" : "thread (20, 0, 0)", text);
    }
}

TEST_F(DependentLaunch, NothingIsTouchedBeforeTheWait) {
    std::vector<Bug> bugs = {kEarlyStreamingRead, kEarlyCopy};
#ifdef LMO_EMULATOR_RACE
    bugs.insert(bugs.end(), {kEarlyRead, kEarlyWrite});
#endif
    for (const Bug bug : bugs) {
        const std::string text = run(bug, true);
        EXPECT_PART("add_kernel", text) << bug;
        EXPECT_PART("before wait_for_previous()", text) << bug;
        // Where functions are not inlined, that is within the one that loads.
        if (bug != kEarlyStreamingRead) EXPECT_PART("test_dependent_launch.cu:", text) << bug;
    }
}

TEST_F(DependentLaunch, GraphsKeepTheKindOfTheirLaunches) {
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    const auto capture = [&](Bug bug) {
        cudaGraph_t graph;
        cudaGraphExec_t executable;
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
        for (int i = 0; i < 3; ++i) add(Stream(stream, true), bug, to_.data(), to_.data());
        cudaStreamEndCapture(stream, &graph);
        cudaGraphInstantiate(&executable, graph, 0);
        cudaGraphDestroy(graph);
        const std::string text = message_of([&] { cudaGraphLaunch(executable, stream); });
        cudaGraphExecDestroy(executable);
        return text;
    };
    EXPECT_EQ(capture(kNone), "no error");
    EXPECT_EQ(to_.values()[0], 3.0f);
    EXPECT_PART("wait_for_previous()", capture(kNoWait));
    cudaStreamDestroy(stream);
}

TEST_F(DependentLaunch, Attributes) {
    const auto with = [&](const std::vector<cudaLaunchAttribute>& attributes, unsigned count) {
        std::vector<cudaLaunchAttribute> list = attributes;
        const cudaLaunchConfig_t config{
            1, 32, 128, nullptr, list.empty() ? nullptr : list.data(), count};
        return message_of([&] {
            emulator::launch("add_kernel", config, add_kernel, kNone, to_.data(), from_.data(),
                             kCount);
        });
    };
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchAttribute odd = early, other = early;
    odd.val.programmaticStreamSerializationAllowed = 2;
    other.id = cudaLaunchAttributeClusterDimension;
    EXPECT_EQ(with({early}, 1), "no error");
    EXPECT_EQ(with({other}, 0), "no error");
    EXPECT_PART("none are there", with({}, 1));
    EXPECT_PART("expected 0 or 1", with({odd}, 1));
    EXPECT_PART("asked for twice", with({early, early}, 2));
    EXPECT_PART("does not know launch attribute 4", with({other}, 1));
    const SettingsGuard guard;
    settings().capability = 89;
    EXPECT_PART("needs compute capability 9.0, this device has 8.9", with({early}, 1));
}

}  // namespace

}  // namespace lmo::cuda
