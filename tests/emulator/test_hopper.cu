// Hopper's barriers, TMA and wgmma in the emulator: a product in all shapes and orders against
// float64, and every mistake of dev/conformance/hopper_gemm.cuh found.
#include <gtest/gtest.h>

#include <vector>

#include "dev/conformance/hopper_gemm.cuh"

namespace lmo::cuda {
namespace {

using emulator::Landing;
using emulator::Order;

#ifdef LMO_EMULATOR_RACE
constexpr bool kChecksRaces = true;
#else
constexpr bool kChecksRaces = false;
#endif

template <typename T>
class OnDevice {
  public:
    explicit OnDevice(int64_t count) : count_(count) {
        check(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), "allocating");
    }
    explicit OnDevice(const std::vector<T>& values) : OnDevice(std::ssize(values)) {
        check(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice),
              "copying");
    }
    ~OnDevice() { cudaFree(data_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    T* data() const { return data_; }
    std::vector<T> read() const {
        std::vector<T> values(count_);
        check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost),
              "copying");
        return values;
    }

  private:
    T* data_ = nullptr;
    int64_t count_;
};

// Multiples of 1/8 in [-1, 1]: their products and sums are exact in fp32.
template <typename T>
std::vector<T> eighths(int64_t count, uint32_t seed) {
    std::vector<T> values(count);
    for (T& value : values) {
        seed = seed * 1664525 + 1013904223;
        value = from_float<T>(static_cast<float>((seed >> 16) % 17) / 8 - 1);
    }
    return values;
}

struct Shape {
    int64_t batch, rows, columns, depth;
};

// Elements of the result that differ from float64 by more than their own rounding.
template <int Columns, typename T, bool TransposeB>
int wrong_elements(const Shape& s, Bug bug = Bug::none) {
    const auto a = eighths<T>(s.batch * s.rows * s.depth, 1);
    const auto b = eighths<T>(s.batch * s.columns * s.depth, 2);
    const OnDevice<T> on_a(a), on_b(b), on_d(s.batch * s.rows * s.columns);
    hopper_gemm<Columns, T, TransposeB, true>(on_d.data(), on_a.data(), on_b.data(), s.batch,
                                              s.rows, s.columns, s.depth, nullptr, bug);
    check(cudaDeviceSynchronize(), "multiplying");
    const auto d = on_d.read();
    const double rounding = std::is_same_v<T, bf16> ? 0x1p-8 : 0x1p-11;
    int wrong = 0;
    for (int64_t z = 0; z < s.batch; ++z) {
        for (int64_t i = 0; i < s.rows; ++i) {
            for (int64_t j = 0; j < s.columns; ++j) {
                double sum = 0;
                for (int64_t k = 0; k < s.depth; ++k) {
                    const int64_t at = TransposeB ? k * s.columns + j : j * s.depth + k;
                    sum += double{to_float(a[(z * s.rows + i) * s.depth + k])} *
                           to_float(b[z * s.columns * s.depth + at]);
                }
                const double got = to_float(d[(z * s.rows + i) * s.columns + j]);
                if (!(std::abs(got - sum) <= rounding * std::abs(sum))) ++wrong;
            }
        }
    }
    return wrong;
}

// TransposeB = false reads B as [columns, depth].
template <int Columns, typename T, bool TransposeB>
void expect_right(const Shape& shape) {
    EXPECT_EQ((wrong_elements<Columns, T, TransposeB>(shape)), 0)
        << shape.batch << " x " << shape.rows << " x " << shape.columns << " x " << shape.depth;
}

TEST(Hopper, ProductsAreRight) {
    expect_right<64, bf16, false>({1, 128, 64, 64});
    expect_right<64, bf16, false>({1, 136, 72, 328});
    expect_right<64, bf16, true>({1, 200, 40, 200});
    expect_right<128, fp16, false>({2, 72, 136, 136});
    expect_right<128, fp16, true>({2, 130, 136, 96});
    expect_right<256, bf16, false>({1, 128, 264, 72});
    expect_right<256, fp16, true>({1, 64, 264, 200});
    expect_right<64, fp16, false>({1, 1, 8, 8});
}

// Leaves the settings as they were.
struct InEveryOrder : testing::Test {
    emulator::SettingsGuard guard;
};

// Calls f with orders of threads and landings of asynchronous work; the first is the one that the
// race build needs alone.
template <typename F>
void for_every_order(F&& f) {
    for (int order = 0; order < 3; ++order) {
        for (Landing landing : {Landing::late, Landing::early, Landing::random}) {
            if (kChecksRaces && order != static_cast<int>(landing)) continue;
            emulator::settings().async_copies = landing;
            emulator::settings().order = order == 0   ? Order::ascending
                                         : order == 1 ? Order::descending
                                                      : Order::random;
            emulator::settings().seed = static_cast<uint64_t>(order);
            f();
        }
    }
}

TEST_F(InEveryOrder, ProductsAreRight) {
    for_every_order([] { expect_right<64, bf16, false>({1, 136, 72, 328}); });
    for_every_order([] { expect_right<128, fp16, true>({1, 72, 136, 264}); });
}

TEST(Hopper, TensorMapsThatTheDriverRefuses) {
    const OnDevice<bf16> memory(1024);
    const bf16* data = memory.data();
    EXPECT_NO_THROW(make_tensor_map(data, 8, 60, 64, 8));
    EXPECT_THROW(make_tensor_map(data + 1, 8, 60, 64, 8), Error);      // not at 16 bytes
    EXPECT_THROW(make_tensor_map(data, 8, 60, 66, 8), Error);          // rows neither
    EXPECT_THROW(make_tensor_map(data, 8, 60, 56, 8), Error);          // rows overlap
    EXPECT_THROW(make_tensor_map(data, 8, 60, 64, 257), Error);        // tile too high
    EXPECT_THROW(make_tensor_map(data, 0, 60, 64, 8), Error);          // nothing there
    EXPECT_THROW(make_tensor_map(data, 2, 4, 60, 260, 64, 8), Error);  // matrices not at 16 bytes
}

// ---- mistakes ----------------------------------------------------------------------------------

struct Mistake {
    Bug bug;
    const char* name;
    // A part of the message, or several of which any will do, separated by '|'; "wrong" where the
    // result tells.
    const char* finding;
    // Found in every order by every build. If not, then by the race build in ascending order, and
    // by the others in at least one.
    bool always = true;
};

void PrintTo(const Mistake& mistake, std::ostream* out) { *out << mistake.name; }

// Where producer and consumers lose each other; which of these comes first depends on the order.
constexpr const char* kOutOfStep =
    "wrong|more arrivals|too few were announced|no thread can go on|not ordered|nobody has waited|"
    "uninitialised|still reads";

const Mistake kMistakes[] = {
    {Bug::expects_too_few_bytes, "ExpectsTooFewBytes", kOutOfStep},
    {Bug::expects_too_many_bytes, "ExpectsTooManyBytes", "lacks 0 of 1 arrivals and 16 bytes"},
    {Bug::parity_never_toggles, "ParityNeverToggles", kOutOfStep},
    {Bug::no_wait_for_tile, "NoWaitForTile", kOutOfStep, false},
    {Bug::no_wait_before_refill, "NoWaitBeforeRefill", kOutOfStep, false},
    {Bug::frees_tile_before_wgmma_wait, "FreesTileBeforeWgmmaWait", "still reads"},
    {Bug::no_wgmma_wait, "NoWgmmaWait", "still reads"},
    {Bug::no_wgmma_fence, "NoWgmmaFence", "no wgmma_fence"},
    {Bug::diverging_warpgroup, "DivergingWarpgroup", "divergence in warpgroup"},
    {Bug::warp_leaves, "WarpLeaves", "wait at wgmma_fence"},
    {Bug::barrier_not_initialised, "BarrierNotInitialised", "not initialised"},
    {Bug::no_sync_after_initialisation, "NoSyncAfterInitialisation", "not initialised|not ordered",
     false},
    {Bug::one_arrival_too_many, "OneArrivalTooMany", kOutOfStep, false},
    {Bug::one_arrival_too_few, "OneArrivalTooFew", "lacks 1 of 2 arrivals"},
    {Bug::wrong_descriptor_stride, "WrongDescriptorStride", "no multiples of 1024"},
    {Bug::descriptors_differ, "DescriptorsDiffer", "operands differ"},
    {Bug::tile_misaligned, "TileMisaligned", "multiple of 1024"},
    {Bug::box_outside_shared_memory, "BoxOutsideSharedMemory", "outside the shared memory"},
    {Bug::two_coordinates_of_three, "TwoCoordinatesOfThree", "rank 3"},
    {Bug::no_sync_before_store, "NoSyncBeforeStore", "wrong|not ordered", false},
    {Bug::no_wait_for_store, "NoWaitForStore", "without tma_store_wait_read"},
    {Bug::refills_stored_tile, "RefillsStoredTile", "wrong|not ordered", false},
    {Bug::wrong_named_barrier_count, "WrongNamedBarrierCount", "wait at named_barrier_sync"},
    {Bug::overwrites_barrier, "OverwritesBarrier", "something else has written"},
    {Bug::too_many_registers, "TooManyRegisters", "520 registers a thread, there are 512"},
};

class Mistakes : public testing::TestWithParam<Mistake> {
    emulator::SettingsGuard guard_;
};

std::string outcome(Bug bug) {
    try {
        const int wrong = wrong_elements<64, bf16, false>({1, 128, 64, 520}, bug);
        return wrong > 0 ? "wrong" : "right";
    } catch (const emulator::Error& error) {
        return error.what();
    }
}

// True where the text has one of the parts.
bool matches(const std::string& text, std::string parts) {
    for (parts += '|'; !parts.empty(); parts.erase(0, parts.find('|') + 1)) {
        if (text.find(parts.substr(0, parts.find('|'))) != std::string::npos) return true;
    }
    return false;
}

TEST_P(Mistakes, IsFound) {
    const Mistake& m = GetParam();
    int found = 0, runs = 0;
    for_every_order([&] {
        const std::string text = outcome(m.bug);
        const bool is_found = matches(text, m.finding);
        if (is_found) ++found;
        if (m.always || (kChecksRaces && runs == 0)) {
            EXPECT_TRUE(is_found) << text;
        }
        if (!is_found) {
            EXPECT_EQ(text, "right");
        }
        ++runs;
    });
    EXPECT_GT(found, 0);
}

INSTANTIATE_TEST_SUITE_P(Hopper, Mistakes, testing::ValuesIn(kMistakes),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace lmo::cuda
