// The two orders of work of a backend, and the milestones that join them.
#include <numeric>

#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

class OrdersTest : public ::testing::TestWithParam<std::string> {
  protected:
    static constexpr int64_t kCount = 5000;

    void SetUp() override {
        backend_ = make_test_backend(GetParam(), 1);
        for (Tensor* tensor : {&source_, &there_, &back_}) {
            *tensor = {backend_->allocate(kCount * sizeof(float)), DType::f32, {kCount}};
            backend_->zero(*tensor);
        }
    }
    void TearDown() override {
        for (const Tensor* tensor : {&source_, &there_, &back_}) backend_->release(tensor->data);
    }
    void put(float value) {
        const std::vector<float> values(kCount, value);
        backend_->copy_in(source_, values.data());
    }
    std::vector<float> result() {
        std::vector<float> values(kCount);
        backend_->copy_out(values.data(), back_);
        return values;
    }
    // there = source in the second order, behind what was issued so far; back = there behind that.
    void go() {
        backend_->reach(0);
        backend_->aside([&] {
            backend_->await(0);
            backend_->copy(there_, source_);
            backend_->reach(1);
        });
        backend_->await(1);
        backend_->copy(back_, there_);
    }

    std::unique_ptr<Backend> backend_;
    Tensor source_, there_, back_;
};

TEST_P(OrdersTest, MilestonesJoinThem) {
    for (const float value : {1.0f, 2.0f, 3.0f}) {
        put(value);
        go();
        EXPECT_EQ(result(), std::vector<float>(kCount, value));
    }
}

// A graph's own milestones count at each launch: what the graph takes long to make is awaited.
TEST_P(OrdersTest, GraphsReachAndAwait) {
    constexpr int64_t kLong = int64_t{1} << 23;
    Tensor input = source_, bulk[2];
    source_.data = backend_->allocate(kCount * sizeof(float));
    for (Tensor& tensor : bulk) {
        tensor = {backend_->allocate(kLong * sizeof(float)), DType::f32, {kLong}};
        backend_->zero(tensor);
    }
    const auto begins = backend_->capture([&] {
        for (int i = 0; i < 10; ++i) backend_->copy(bulk[1 - i % 2], bulk[i % 2]);
        backend_->copy(source_, input);
        backend_->reach(7);
        backend_->zero(back_);
    });
    const auto ends = backend_->capture([&] {
        backend_->await(3);
        backend_->copy(back_, there_);
    });
    for (const float value : {1.0f, 2.0f, 3.0f}) {
        const std::vector<float> values(kCount, value);
        backend_->copy_in(input, values.data());
        begins->launch();
        backend_->aside([&] {
            backend_->await(7);
            backend_->copy(there_, source_);
            backend_->reach(3);
        });
        ends->launch();
        EXPECT_EQ(result(), std::vector<float>(kCount, value));
        ends->launch();  // nothing new to wait for
        EXPECT_EQ(result(), std::vector<float>(kCount, value));
    }
    for (const Tensor& tensor : {input, bulk[0], bulk[1]}) backend_->release(tensor.data);
}

// Who awaits what nobody reached goes on.
TEST_P(OrdersTest, NothingReachedYet) {
    put(4.0f);
    backend_->await(20);
    const auto graph = backend_->capture([&] {
        backend_->await(21);
        backend_->copy(back_, source_);
    });
    graph->launch();
    EXPECT_EQ(result(), std::vector<float>(kCount, 4.0f));
}

// An error inside leaves the backend where it was.
TEST_P(OrdersTest, ErrorsAside) {
    EXPECT_THROW(backend_->aside([] { throw std::runtime_error("x"); }), std::runtime_error);
    put(5.0f);
    go();
    EXPECT_EQ(result(), std::vector<float>(kCount, 5.0f));
}

// copy_in has read the host's bytes when it returns, however many copies are under way.
TEST_P(OrdersTest, CopiesInDoNotNeedTheHostAnyMore) {
    constexpr int64_t kLong = 700000;  // several pieces of the memory between, the last one short
    std::vector<Tensor> tensors;
    std::vector<float> host(kLong);
    for (int i = 0; i < 9; ++i) {
        const int64_t count = i % 2 ? kLong : 100 + i;
        tensors.push_back(
            {backend_->allocate(static_cast<size_t>(count) * 4), DType::f32, {count}});
        std::iota(host.begin(), host.end(), static_cast<float>(1000 * i));
        backend_->copy_in(tensors.back(), host.data());
    }
    std::vector<float> expected(kLong);
    for (size_t i = 0; i < tensors.size(); ++i) {
        const size_t count = static_cast<size_t>(tensors[i].count());
        backend_->copy_out(host.data(), tensors[i]);
        std::iota(expected.begin(), expected.end(), static_cast<float>(1000 * i));
        EXPECT_TRUE(std::equal(expected.begin(), expected.begin() + count, host.begin())) << i;
        backend_->release(tensors[i].data);
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, OrdersTest, ::testing::ValuesIn(test_backends()));

}  // namespace
}  // namespace lmo
