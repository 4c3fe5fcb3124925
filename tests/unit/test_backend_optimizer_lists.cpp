// The optimizer's operations over lists: of any length, at any address, recorded and run again.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

// Lists of tensors that are slices of one buffer each, and all operations one after another on
// them. What lies between the slices must stay as it is.
class OptimizerListTest : public BackendTest {
  protected:
    static constexpr double between = 77;

    struct Lists {
        Tensor flat[4], flat_copies;  // of x, m, v, w; of the copies
        std::vector<Tensor> x, m, v, w, copies;
        std::vector<double> radius, decay;
        Lists part(size_t i) const {
            return {{}, {}, {x[i]}, {m[i]}, {v[i]}, {w[i]}, {copies[i]}, {radius[i]}, {decay[i]}};
        }
    };

    // Tensor i starts at place[i] of each buffer, `shift[l]` later in list l, and i * spread later
    // in lists behind the first.
    Lists make_lists(const std::vector<int64_t>& sizes, const std::vector<int64_t>& place,
                     const std::vector<int64_t>& shift, int64_t length, int64_t spread = 0) {
        Lists lists;
        std::vector<Tensor>* views[] = {&lists.x, &lists.m, &lists.v, &lists.w};
        const auto start = [&](size_t i, int l) {
            return place[i] + shift[l] + (l > 0 ? static_cast<int64_t>(i) * spread : 0);
        };
        for (int l = 0; l < 4; ++l) {
            Values values(length, between);
            for (size_t i = 0; i < sizes.size(); ++i) {
                for (int64_t j = 0; j < sizes[i]; ++j) {
                    const double value = random_normal(l + 1, i, static_cast<uint64_t>(j));
                    values[start(i, l) + j] = l == 2 ? std::abs(value) : value;
                }
            }
            lists.flat[l] = put(DType::f32, {length}, values);
            for (size_t i = 0; i < sizes.size(); ++i) {
                views[l]->push_back(lists.flat[l].slice(start(i, l), {sizes[i]}));
            }
        }
        lists.flat_copies = put(DType::bf16, {length}, Values(length, between));
        for (size_t i = 0; i < sizes.size(); ++i) {
            lists.copies.push_back(lists.flat_copies.slice(start(i, 3), {sizes[i]}));
            lists.radius.push_back(1.0 + static_cast<double>(i / 50 % 3));  // runs of equal ones
            lists.decay.push_back(i / 70 % 2 ? 0.1 : 0.0);
        }
        return lists;
    }

    void run_all(const Lists& l) {
        const Tensor factor = put(DType::f64, {1}, {0.7}), step = put(DType::f64, {1}, {3});
        backend_->adam({l.x, l.m, l.v, factor, step, 0.8, 0.99, 1e-3, false});
        backend_->momentum({l.x, l.m, factor, 0.9, 0.1, 0.95, 0.05});
        backend_->momentum({l.x, {}, factor, 0.0, 1.5, 0.0, 0.0});
        FrobeniusNormalize normalise{l.x, 1e-8, {}};
        give_workspace(normalise);
        backend_->frobenius_normalize(normalise);
        const Tensor rate = put(DType::f64, {1}, {0.01});
        backend_->apply({l.w, l.x, l.copies, rate, 0.5, l.radius, l.decay});
        backend_->apply({l.w, l.x, {}, rate, 0.25, l.radius, l.decay});
        backend_->sign({l.m});
    }

    // All that run_all wrote, tensor by tensor; counts that nothing else changed.
    std::vector<Values> results(const Lists& lists) {
        std::vector<Values> all;
        int64_t inside = 0, untouched = 0, length = 0;
        for (const auto* list : {&lists.x, &lists.m, &lists.v, &lists.w, &lists.copies}) {
            for (const Tensor& tensor : *list) {
                all.push_back(get(tensor));
                inside += tensor.count();
            }
        }
        for (const Tensor& flat :
             {lists.flat[0], lists.flat[1], lists.flat[2], lists.flat[3], lists.flat_copies}) {
            const Values values = get(flat);
            length += flat.count();
            untouched += std::count(values.begin(), values.end(), between);
        }
        EXPECT_EQ(inside + untouched, length) << "something between the tensors was written";
        return all;
    }
};

// Sizes round the width of vectors and of blocks, then tiny and empty tensors: more than one launch
// of any implementation takes.
std::vector<int64_t> many_sizes() {
    std::vector<int64_t> sizes = {8191, 8192, 8193, 16385, 32769};
    for (int i = 0; i < 600; ++i) sizes.push_back(i % 10);
    return sizes;
}

// Where tensors of these sizes start, with `gap` elements or more between them, at multiples of
// `multiple`; and at last where they end.
std::vector<int64_t> places(const std::vector<int64_t>& sizes, int64_t gap, int64_t multiple) {
    std::vector<int64_t> place;
    int64_t at = 0;
    for (const int64_t size : sizes) {
        place.push_back(at);
        at = (at + size + gap + multiple - 1) / multiple * multiple;
    }
    place.push_back(at + 8);
    return place;
}

TEST_P(OptimizerListTest, PlaceAndCompanyDoNotMatter) {
    const std::vector<int64_t> sizes = many_sizes();
    const auto run = [&](size_t tensors, int64_t gap, int64_t multiple,
                         const std::vector<int64_t>& shift, bool together = true,
                         int64_t spread = 0) {
        const std::vector<int64_t> some(sizes.begin(), sizes.begin() + tensors);
        const std::vector<int64_t> place = places(some, gap, multiple);
        const Lists lists = make_lists(some, place, shift, place.back() + spread * tensors, spread);
        if (together) {
            run_all(lists);
        } else {
            for (size_t i = 0; i < tensors; ++i) run_all(lists.part(i));
        }
        return results(lists);
    };
    const auto all = run(sizes.size(), 0, 64, {0, 0, 0, 0});
    EXPECT_EQ(run(sizes.size(), 3, 1, {1, 0, 3, 2}), all) << "with gaps";
    const size_t few = 40;
    std::vector<Values> expected;
    for (size_t list = 0; list < 5; ++list) {
        const auto first = all.begin() + list * sizes.size();
        expected.insert(expected.end(), first, first + few);
    }
    EXPECT_EQ(run(few, 0, 64, {0, 0, 0, 0}, false), expected) << "one by one";
    EXPECT_EQ(run(few, 0, 1, {0, 0, 0, 0}), expected) << "without gaps";
    EXPECT_EQ(run(few, 0, 1, {0, 1, 2, 3}), expected) << "without gaps, shifted";
    EXPECT_EQ(run(few, 0, 1, {0, 0, 0, 0}, true, 1), expected) << "one list without gaps";
    EXPECT_EQ(run(few, 0, 4, {1, 1, 1, 1}), expected) << "one behind a boundary";
}

TEST_P(OptimizerListTest, EmptyListsAndTensors) {
    run_all(Lists{});
    const Lists lists = make_lists({0, 3, 0}, {0, 1, 5}, {0, 0, 0, 0}, 8);
    run_all(lists);
    const auto all = results(lists);
    EXPECT_TRUE(all[0].empty());
    EXPECT_NEAR(std::hypot(all[1][0], all[1][1], all[1][2]), 1.0, 1e-6);
}

// A recorded sequence reads factor, step and rate at each run.
TEST_P(OptimizerListTest, ReplaysReadTheScalarsAgain) {
    const std::vector<int64_t> sizes = {5, 70, 9000}, place = {0, 64, 256};
    const auto lists = [&] { return make_lists(sizes, place, {0, 0, 0, 0}, 9300); };
    const auto issue = [&](const Lists& l, const Tensor& scalars) {
        const Tensor factor = scalars.slice(0, {1});
        backend_->adam({l.x, l.m, l.v, factor, scalars.slice(1, {1}), 0.8, 0.99, 1e-3, true});
        backend_->momentum({l.x, l.m, factor, 0.9, 0.1, 0.95, 0.05});
        backend_->apply({l.w, l.x, l.copies, scalars.slice(2, {1}), 1, l.radius, l.decay});
    };
    const Values settings[] = {{1.0, 0, 0.1}, {0.5, 1, 0.3}, {0.25, 7, 0}};
    const Lists plain = lists(), recorded = lists();
    for (const Values& values : settings) issue(plain, put(DType::f64, {3}, values));
    const Tensor scalars = put(DType::f64, {3}, {NAN, NAN, NAN});
    const auto graph = backend_->capture([&] {
        const Lists gone = recorded;  // the lists themselves need not live on
        issue(gone, scalars);
    });
    for (const Values& values : settings) {
        backend_->copy_in(scalars, values.data());
        graph->launch();
    }
    EXPECT_EQ(results(recorded), results(plain));
}

LMO_ON_ALL_BACKENDS(OptimizerListTest);

}  // namespace
}  // namespace lmo
