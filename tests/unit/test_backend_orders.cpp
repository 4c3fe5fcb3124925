// The two orders of work of a backend, and the milestones that join them.
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

// A graph's own milestones count at each launch.
TEST_P(OrdersTest, GraphsReachAndAwait) {
    const auto begins = backend_->capture([&] {
        backend_->copy(back_, source_);
        backend_->reach(7);
        backend_->zero(back_);
    });
    const auto ends = backend_->capture([&] {
        backend_->await(3);
        backend_->copy(back_, there_);
    });
    for (const float value : {1.0f, 2.0f, 3.0f}) {
        put(value);
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

INSTANTIATE_TEST_SUITE_P(Backends, OrdersTest, ::testing::ValuesIn(test_backends()));

}  // namespace
}  // namespace lmo
