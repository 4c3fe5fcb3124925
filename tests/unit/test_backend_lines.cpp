// Rows and columns of matrices by their own norms, and NorMuon's second moment of rows, against the
// formulas of llmc/device/backend.h.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

const std::vector<Shape> shapes = {{1, 37},  {37, 1},  {7, 12},  {12, 7},    {9},      {1, 1},
                                   {33, 65}, {65, 33}, {5, 128}, {301, 130}, {3, 2100}};

class LinesTest : public BackendTest {
  protected:
    struct List {
        std::vector<Tensor> x;
        std::vector<Values> values;
    };

    // Rows of very different sizes.
    List put_list(DType type, const std::vector<Shape>& of, bool unaligned = false) {
        List list;
        for (size_t i = 0; i < of.size(); ++i) {
            Values values = random_values(of[i].count(), i + 1);
            const int64_t columns = of[i].columns();
            for (size_t k = 0; k < values.size(); ++k) {
                values[k] *= std::pow(10.0, static_cast<int>(k / columns) % 5 * 3 - 6);
            }
            values = round_to(type, values);
            list.x.push_back(unaligned ? put_unaligned(type, of[i], values)
                                       : put(type, of[i], values));
            list.values.push_back(values);
        }
        return list;
    }

    std::vector<Values> get_list(const std::vector<Tensor>& list) {
        std::vector<Values> values;
        for (const Tensor& tensor : list) values.push_back(get(tensor));
        return values;
    }

    void row_moments(RowMomentNormalize op) {
        give_workspace(op);
        backend_->row_moment_normalize(op);
    }

    std::vector<Tensor> put_moments(DType type, const std::vector<Shape>& of) {
        std::vector<Tensor> second;
        for (size_t i = 0; i < of.size(); ++i) {
            Values values = random_values(of[i].rows(), 50 + i);
            for (double& value : values) value *= value;
            second.push_back(put(type, {of[i].rows()}, values));
        }
        return second;
    }

    // Each element within a few roundings of its value.
    void expect_elements(DType type, const Values& actual, const Values& exact) {
        ASSERT_EQ(actual.size(), exact.size());
        const double allowed = type == DType::f64 ? 1e-13 : 12 * half_ulp(type);
        for (size_t i = 0; i < exact.size(); ++i) {
            ASSERT_LE(std::abs(actual[i] - exact[i]), allowed * std::abs(exact[i])) << i;
        }
    }
};

Values normalized(const Shape& shape, Values x, bool by_columns, double eps) {
    const int64_t rows = shape.rows(), columns = shape.columns();
    Values squares(by_columns ? columns : rows, 0.0);
    const auto line = [&](size_t k) { return by_columns ? k % columns : k / columns; };
    for (size_t k = 0; k < x.size(); ++k) squares[line(k)] += x[k] * x[k];
    for (size_t k = 0; k < x.size(); ++k) x[k] /= std::sqrt(squares[line(k)]) + eps;
    return x;
}

TEST_P(LinesTest, RowsAndColumns) {
    for (const DType type : master_types()) {
        for (const bool columns : {false, true}) {
            for (const double eps : {0.0, 1e-3}) {
                const List list = put_list(type, shapes);
                backend_->line_normalize({list.x, columns, eps});
                for (size_t i = 0; i < shapes.size(); ++i) {
                    SCOPED_TRACE(to_string(shapes[i]));
                    expect_elements(type, get(list.x[i]),
                                    normalized(shapes[i], list.values[i], columns, eps));
                }
            }
        }
    }
}

TEST_P(LinesTest, ZerosStayZeroAndNanStaysInItsLine) {
    for (const bool columns : {false, true}) {
        Values values(35, 2.0);
        values[8] = NAN;                                      // row 1, column 1
        for (int j = 0; j < 7; ++j) values[21 + j] = 0.0;     // row 3
        for (int i = 0; i < 5; ++i) values[7 * i + 4] = 0.0;  // column 4
        const std::vector<Tensor> x = {put(DType::f32, {5, 7}, values),
                                       put(DType::f32, {2, 2}, {0, 0, 0, 0})};
        backend_->line_normalize({x, columns, 1e-8});
        const Values out = get(x[0]);
        for (int k = 0; k < 35; ++k) {
            const bool bad = columns ? k % 7 == 1 : k / 7 == 1;
            EXPECT_EQ(std::isnan(out[k]), bad) << k;
            if (k / 7 == 3 && !bad) {
                EXPECT_EQ(out[k], 0.0);
            }
            if (k % 7 == 4 && !bad) {
                EXPECT_EQ(out[k], 0.0);
            }
        }
        EXPECT_EQ(get(x[1]), (Values{0, 0, 0, 0}));
    }
}

TEST_P(LinesTest, HugeAndTinyLines) {
    for (const bool columns : {false, true}) {
        const Values values = {3e37, 4e37, 3e-30, 4e-30};
        const std::vector<Tensor> x = {
            put(DType::f32, {2, 2}, columns ? Values{3e37, 3e-30, 4e37, 4e-30} : values)};
        backend_->line_normalize({x, columns, 0.0});
        expect_elements(DType::f32, get(x[0]),
                        columns ? Values{0.6, 0.6, 0.8, 0.8} : Values{0.6, 0.8, 0.6, 0.8});
    }
}

// More tensors than one launch of any implementation takes.
std::vector<Shape> many_shapes() {
    std::vector<Shape> many;
    for (int64_t i = 0; i < 472; ++i) many.push_back({1 + i % 4, 1 + i % 5});
    many.push_back({40, 33});
    return many;
}

TEST_P(LinesTest, PlaceAndCompanyDoNotMatter) {
    const std::vector<Shape> many = many_shapes();
    for (const bool columns : {false, true}) {
        const List together = put_list(DType::f32, many), single = put_list(DType::f32, many);
        const List shifted = put_list(DType::f32, many, true);
        backend_->line_normalize({together.x, columns, 1e-8});
        backend_->line_normalize({shifted.x, columns, 1e-8});
        for (size_t i = 0; i < many.size(); i += i < 40 ? 1 : 43) {
            backend_->line_normalize({{&single.x[i], 1}, columns, 1e-8});
            EXPECT_EQ(get(together.x[i]), get(single.x[i]));
        }
        EXPECT_EQ(get_list(together.x), get_list(shifted.x));
        backend_->line_normalize({{}, columns, 1e-8});
    }
}

// ---- row moments --------------------------------------------------------------------------------

TEST_P(LinesTest, RowMoments) {
    for (const DType type : master_types()) {
        for (const double eps : {1e-8, 0.5}) {
            const double beta2 = 0.95;
            List list = put_list(type, shapes);
            const auto second = put_moments(type, shapes);
            auto moments = get_list(second);
            for (int step = 0; step < 2; ++step) {
                row_moments({list.x, second, beta2, eps, {}});
                for (size_t i = 0; i < shapes.size(); ++i) {
                    SCOPED_TRACE(to_string(shapes[i]));
                    const int64_t rows = shapes[i].rows(), columns = shapes[i].columns();
                    Values y = list.values[i];
                    double before = 0, after = 0;
                    for (int64_t r = 0; r < rows; ++r) {
                        double squares = 0;
                        for (int64_t j = 0; j < columns; ++j) {
                            squares += y[r * columns + j] * y[r * columns + j];
                        }
                        double& moment = moments[i][r];
                        moment = beta2 * moment + (1 - beta2) * squares / double(columns);
                        before += squares;
                        for (int64_t j = 0; j < columns; ++j) {
                            double& value = y[r * columns + j];
                            value /= std::sqrt(moment) + eps;
                            after += value * value;
                        }
                    }
                    for (double& value : y) value *= std::sqrt(before) / (std::sqrt(after) + eps);
                    expect_elements(type, get(second[i]), moments[i]);
                    expect_elements(type, get(list.x[i]), y);
                    list.values[i] = get(list.x[i]);
                    moments[i] = get(second[i]);
                }
            }
        }
    }
}

TEST_P(LinesTest, RowMomentsOfZerosDecay) {
    const std::vector<Tensor> x = {put(DType::f32, {2, 3}, Values(6, 0.0))};
    const std::vector<Tensor> second = {put(DType::f32, {2}, {0.0, 4.0})};
    row_moments({x, second, 0.5, 1e-8, {}});
    EXPECT_EQ(get(x[0]), Values(6, 0.0));
    EXPECT_EQ(get(second[0]), (Values{0.0, 2.0}));
}

TEST_P(LinesTest, RowMomentsOfNan) {
    const std::vector<Tensor> x = {put(DType::f32, {2, 2}, {1, NAN, 2, 3}),
                                   put(DType::f32, {1, 2}, {3, 4})};
    const std::vector<Tensor> second = {put(DType::f32, {2}, {1, 1}), put(DType::f32, {1}, {1})};
    row_moments({x, second, 0.5, 1e-8, {}});
    for (const double value : get(x[0])) EXPECT_TRUE(std::isnan(value));
    for (const double value : get(x[1])) EXPECT_TRUE(std::isfinite(value));
}

TEST_P(LinesTest, RowMomentsOfManyTensors) {
    const std::vector<Shape> many = many_shapes();
    const List together = put_list(DType::f32, many), single = put_list(DType::f32, many);
    const List shifted = put_list(DType::f32, many, true);
    const auto second = put_moments(DType::f32, many), alone = put_moments(DType::f32, many);
    const auto third = put_moments(DType::f32, many);
    row_moments({together.x, second, 0.9, 1e-8, {}});
    row_moments({shifted.x, third, 0.9, 1e-8, {}});
    RowMomentNormalize op{{}, {}, 0.9, 1e-8, {}};
    for (size_t i = 0; i < many.size(); i += i < 40 ? 1 : 43) {
        op.x = {&single.x[i], 1};
        op.second = {&alone[i], 1};
        give_workspace(op);
        backend_->row_moment_normalize(op);
        EXPECT_EQ(get(together.x[i]), get(single.x[i]));
        EXPECT_EQ(get(second[i]), get(alone[i]));
    }
    EXPECT_EQ(get_list(together.x), get_list(shifted.x));
    EXPECT_EQ(get_list(second), get_list(third));
    row_moments({{}, {}, 0.9, 1e-8, {}});
}

// ---- both ---------------------------------------------------------------------------------------

TEST_P(LinesTest, EqualBitsAndReplays) {
    const auto issue = [&](const List& list, const std::vector<Tensor>& second, Tensor workspace) {
        backend_->line_normalize({list.x, false, 1e-8});
        backend_->row_moment_normalize({list.x, second, 0.9, 1e-8, workspace});
        backend_->line_normalize({list.x, true, 1e-8});
    };
    const auto workspace_of = [&](const List& list, const std::vector<Tensor>& second) {
        RowMomentNormalize op{list.x, second, 0.9, 1e-8, {}};
        give_workspace(op);
        return op.workspace;
    };
    const List plain = put_list(DType::f32, shapes), recorded = put_list(DType::f32, shapes);
    const auto plain_second = put_moments(DType::f32, shapes);
    const auto second = put_moments(DType::f32, shapes);
    const Tensor workspace = workspace_of(recorded, second);
    const auto graph = backend_->capture([&] { issue(recorded, second, workspace); });
    for (int run = 0; run < 2; ++run) {
        issue(plain, plain_second, workspace_of(plain, plain_second));
        graph->launch();
        EXPECT_EQ(get_list(plain.x), get_list(recorded.x));
        EXPECT_EQ(get_list(plain_second), get_list(second));
    }
}

LMO_ON_ALL_BACKENDS(LinesTest);

}  // namespace
}  // namespace lmo
