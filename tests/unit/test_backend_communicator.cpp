// The collectives of devices, of one rank: that the library is found, connects, and does what is
// asked for on the backend's own memory. Several ranks are in tests/integration/test_gpu_ranks.py.
#include <thread>

#include "llmc/core/error.h"
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

class CommunicatorTest : public ::testing::TestWithParam<std::string> {
  protected:
    void SetUp() override {
        backend_ = make_test_backend(GetParam(), 1);
        if (backend_->device_id().empty()) GTEST_SKIP() << "exchanges through host memory";
        std::string id;
        try {
            id = backend_->make_communicator_id();
        } catch (const Error& error) {
            GTEST_SKIP() << error.what();
        }
        communicator_ = backend_->connect(id, 0, 1);
        wait();
    }
    void TearDown() override {
        if (tensor_.data) backend_->release(tensor_.data);
    }

    void wait() {
        while (!communicator_->ended()) std::this_thread::yield();
    }
    void put(DType type, const std::vector<double>& values) {
        tensor_ = {backend_->allocate(values.size() * size_of(type)),
                   type,
                   {static_cast<int64_t>(values.size())}};
        const std::vector<float> narrow(values.begin(), values.end());
        backend_->copy_in(
            tensor_, type == DType::f64 ? static_cast<const void*>(values.data()) : narrow.data());
    }
    std::vector<float> floats() {
        std::vector<float> values(static_cast<size_t>(tensor_.count()));
        backend_->copy_out(values.data(), tensor_);
        return values;
    }

    std::unique_ptr<Backend> backend_;
    std::unique_ptr<Communicator> communicator_;
    Tensor tensor_;
};

TEST_P(CommunicatorTest, OneRankKeepsItsValues) {
    const std::vector<float> expected = {1.5f, -2.0f, 3.25f, 4.0f, 1e-30f};
    put(DType::f32, {expected.begin(), expected.end()});
    const OwnedTensor parts[] = {{tensor_.slice(0, {2}), 0}, {tensor_.slice(2, {3}), 0}};
    communicator_->sum_to_owners(parts);
    wait();
    communicator_->share(parts);
    wait();
    communicator_->sum(tensor_);
    wait();
    EXPECT_EQ(floats(), expected);
    EXPECT_EQ(communicator_->describe().substr(0, 6), "NCCL 2");
}

TEST_P(CommunicatorTest, WorksInTheSecondOrderOfTheBackend) {
    put(DType::f32, {1.0, 2.0, 3.0});
    const Tensor half = tensor_.slice(0, {3});
    backend_->momentum({{&half, 1}, {}, {}, 0.0, 0.5, 0.0, 0.0});
    backend_->reach(0);
    backend_->aside([&] { backend_->await(0); });
    communicator_->sum(tensor_);
    while (!communicator_->issued()) std::this_thread::yield();
    backend_->aside([&] { backend_->reach(1); });
    backend_->await(1);
    backend_->momentum({{&half, 1}, {}, {}, 0.0, 4.0, 0.0, 0.0});
    EXPECT_EQ(floats(), (std::vector<float>{2.0f, 4.0f, 6.0f}));
}

TEST_P(CommunicatorTest, Doubles) {
    const std::vector<double> expected = {1.0 + 1e-15, -3.0};
    put(DType::f64, expected);
    communicator_->sum(tensor_);
    wait();
    std::vector<double> values(2);
    backend_->copy_out(values.data(), tensor_);
    EXPECT_EQ(values, expected);
}

// Of split weights: bits of 16 that mean different things.
TEST_P(CommunicatorTest, SharesHalves) {
    for (const DType type : {DType::bf16, DType::i16}) {
        const std::vector<uint16_t> expected = {0x8000, 0x7fff, 0xffff, 0, 0x1234};
        if (tensor_.data) backend_->release(tensor_.data);
        tensor_ = {backend_->allocate(2 * expected.size()), type, {5}};
        backend_->copy_in(tensor_, expected.data());
        const OwnedTensor parts[] = {{tensor_.slice(0, {2}), 0}, {tensor_.slice(2, {3}), 0}};
        communicator_->share(parts);
        wait();
        std::vector<uint16_t> values(expected.size());
        backend_->copy_out(values.data(), tensor_);
        EXPECT_EQ(values, expected);
    }
}

TEST_P(CommunicatorTest, AbortMayComeAtAnyTime) {
    put(DType::f32, {1.0});
    communicator_->sum(tensor_);
    communicator_->abort();
    communicator_->abort();
    backend_->synchronize();
}

TEST_P(CommunicatorTest, DevicesHaveIds) {
    const std::string id = backend_->device_id();
    EXPECT_EQ(id.size(), 40u) << id;
    EXPECT_EQ(id.substr(0, 4), "GPU-");
    EXPECT_EQ(make_test_backend(GetParam(), 1)->device_id(), id);
}

INSTANTIATE_TEST_SUITE_P(Backends, CommunicatorTest, ::testing::ValuesIn(test_backends()));

}  // namespace
}  // namespace lmo
