// QK21 and QAGS. The order of floating-point operations is part of the result
// here; the Makefile forbids to fuse them.
#include "llmc/schedule/quadrature.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <limits>
#include <vector>

#include "llmc/schedule/epsilon_table.h"

namespace lmo {

namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
constexpr double kSmallest = std::numeric_limits<double>::min();
constexpr double kLargest = std::numeric_limits<double>::max();

// Positive nodes of the 21-point Kronrod rule on [-1, 1]; odd places are those of the 10-point
// Gauss rule. Kronrod's weights, then Gauss's.
constexpr std::array<double, 11> kNodes = {0.995657163025808080735527280689003,
                                           0.973906528517171720077964012084452,
                                           0.930157491355708226001207180059508,
                                           0.865063366688984510732096688423493,
                                           0.780817726586416897063717578345042,
                                           0.679409568299024406234327365114874,
                                           0.562757134668604683339000099272694,
                                           0.433395394129247190799265943165784,
                                           0.294392862701460198131126603103866,
                                           0.148874338981631210884826001129720,
                                           0.0};
constexpr std::array<double, 11> kWeights = {
    0.011694638867371874278064396062192, 0.032558162307964727478818972459390,
    0.054755896574351996031381300244580, 0.075039674810919952767043140916190,
    0.093125454583697605535065465083366, 0.109387158802297641899210590325805,
    0.123491976262065851077958109585166, 0.134709217311473325928054001771707,
    0.142775938577060080797094273138717, 0.147739104901338491374841515972068,
    0.149445554002916905664936468389821};
constexpr std::array<double, 5> kGaussWeights = {
    0.066671344308688137593568809893332, 0.149451349150580593145863397657697,
    0.219086362515982043995534934228163, 0.269266719309996355091226921569469,
    0.295524224714752870173815619188769};

struct Panel {
    double value, error;
    double absolute;   // integral of |f|
    double deviation;  // integral of |f - mean of f|
};

Panel panel_21(const Integrand& f, double a, double b) {
    const double centre = 0.5 * (a + b), half = 0.5 * (b - a);
    std::array<double, 10> below, above;
    const double middle = f(centre);
    double gauss = 0.0, kronrod = kWeights[10] * middle, absolute = std::abs(kronrod);
    const auto add_pair = [&](int j) {
        const double distance = half * kNodes[j];
        below[j] = f(centre - distance);
        above[j] = f(centre + distance);
        const double sum = below[j] + above[j];
        kronrod += kWeights[j] * sum;
        absolute += kWeights[j] * (std::abs(below[j]) + std::abs(above[j]));
        return sum;
    };
    for (int j = 0; j < 5; ++j) gauss += kGaussWeights[j] * add_pair(2 * j + 1);
    for (int j = 0; j < 5; ++j) add_pair(2 * j);

    const double mean = kronrod * 0.5;
    double deviation = kWeights[10] * std::abs(middle - mean);
    for (int j = 0; j < 10; ++j) {
        deviation += kWeights[j] * (std::abs(below[j] - mean) + std::abs(above[j] - mean));
    }
    Panel panel;
    panel.value = kronrod * half;
    panel.absolute = absolute * std::abs(half);
    panel.deviation = deviation * std::abs(half);
    panel.error = std::abs((kronrod - gauss) * half);
    if (panel.deviation != 0.0 && panel.error != 0.0) {
        const double ratio = 200.0 * panel.error / panel.deviation;
        panel.error = panel.deviation * std::min(1.0, std::pow(ratio, 1.5));
    }
    if (panel.absolute > kSmallest / (50.0 * kEpsilon)) {
        panel.error = std::max((kEpsilon * 50.0) * panel.absolute, panel.error);
    }
    return panel;
}

struct Interval {
    double a, b, value, error;
};

// The intervals, and the order of the largest errors among them (QPSRT). `largest` is the interval
// to bisect next: the one of rank `rank` in that order, 0 unless larger intervals go first.
class Intervals {
  public:
    Intervals(const Interval& whole, int limit) : limit_(limit) {
        list.push_back(whole);
        order_.assign(static_cast<size_t>(limit) + 2, 0);
    }

    std::vector<Interval> list;
    size_t largest = 0;
    double largest_error = 0;
    int rank = 0;

    const Interval& operator[](size_t i) const { return list[i]; }
    double width(size_t i) const { return std::abs(list[i].b - list[i].a); }
    void choose(int new_rank) {
        rank = new_rank;
        largest = order_[static_cast<size_t>(rank)];
        largest_error = list[largest].error;
    }
    // Ranks that the order keeps: fewer when the limit is near.
    int ranks() const {
        const int count = static_cast<int>(list.size());
        return count > limit_ / 2 + 2 ? limit_ + 3 - count : count;
    }

    // After a bisection: list[largest] and the last one of the list are new.
    void sort() {
        const size_t added = list.size() - 1;
        if (list.size() == 2) {
            order_[0] = 0;
            order_[1] = 1;
            return choose(rank);
        }
        const double error = list[largest].error, smaller = list[added].error;
        while (rank > 0 && error > list[order_[rank - 1]].error) {
            order_[rank] = order_[rank - 1];
            --rank;
        }
        const int last = ranks() - 1, bound = last - 1;
        int i = rank + 1;
        for (; i <= bound && error < list[order_[i]].error; ++i) order_[i - 1] = order_[i];
        if (i > bound) {
            order_[bound] = largest;
            order_[last] = added;
            return choose(rank);
        }
        order_[i - 1] = largest;
        int k = bound;
        for (; k >= i && smaller >= list[order_[k]].error; --k) order_[k + 1] = order_[k];
        order_[k + 1] = added;
        choose(rank);
    }

  private:
    int limit_;
    std::vector<size_t> order_;
};

// The state of QAGS between bisections; names in quotes are QUADPACK's.
class Qags {
  public:
    Qags(const Integrand& f, double a, double b, double absolute, double relative, int limit)
        : f_(f),
          absolute_(absolute),
          relative_(relative),
          limit_(limit),
          first_(panel_21(f, a, b)),
          intervals_({a, b, first_.value, first_.error}, limit) {}

    QuadratureResult run() {
        const double bound = tolerance(first_.value);
        if (first_.error <= 100.0 * kEpsilon * first_.absolute && first_.error > bound) fault_ = 2;
        if (limit_ == 1) fault_ = 1;
        const bool reached = first_.error <= bound && first_.error != first_.deviation;
        if (fault_ != 0 || reached || first_.error == 0.0) {
            return {first_.value, first_.error, 21, static_cast<QuadratureStatus>(fault_)};
        }
        intervals_.largest_error = first_.error;
        area_ = first_.value;
        error_sum_ = first_.error;
        table_.set(0, first_.value);
        table_.size = 2;
        Next next = Next::go_on;
        while (next == Next::go_on) next = bisect();
        if (next == Next::sum || !settle()) return sum();
        return result(value_, error_);
    }

  private:
    enum class Next { go_on, extrapolated, sum };

    double tolerance(double value) const {
        return std::max(absolute_, relative_ * std::abs(value));
    }

    Next bisect() {
        const Interval old = intervals_[intervals_.largest];
        const double old_error = intervals_.largest_error;
        const double middle = 0.5 * (old.a + old.b);
        const Panel left = panel_21(f_, old.a, middle), right = panel_21(f_, middle, old.b);
        const double value = left.value + right.value, error = left.error + right.error;
        error_sum_ = error_sum_ + error - old_error;
        area_ = area_ + value - old.value;
        const int count = static_cast<int>(intervals_.list.size()) + 1;  // "last"
        if (left.deviation != left.error && right.deviation != right.error) {
            if (std::abs(old.value - value) <= 1e-5 * std::abs(value) &&
                error >= 0.99 * old_error) {
                ++(extrapolating_ ? roundoff2_ : roundoff1_);
            }
            if (count > 10 && error > old_error) ++roundoff3_;
        }
        const double bound = tolerance(area_);
        if (roundoff1_ + roundoff2_ >= 10 || roundoff3_ >= 20) fault_ = 2;
        if (roundoff2_ >= 5) table_fault_ = true;
        if (count == limit_) fault_ = 1;
        if (std::max(std::abs(old.a), std::abs(old.b)) <=
            (1.0 + 100.0 * kEpsilon) * (std::abs(middle) + 1000.0 * kSmallest)) {
            fault_ = 4;
        }
        replace({old.a, middle, left.value, left.error}, {middle, old.b, right.value, right.error});
        if (error_sum_ <= bound) return Next::sum;
        if (fault_ != 0) return Next::extrapolated;
        if (count == 2) {
            small_ = std::abs(old.b - old.a) * 0.375;
            large_error_ = error_sum_;
            error_test_ = bound;
            table_.set(1, area_);
            return Next::go_on;
        }
        if (no_extrapolation_) return Next::go_on;
        large_error_ -= old_error;
        if (std::abs(middle - old.a) > small_) large_error_ += error;
        return extrapolate();
    }

    // The half with the larger error takes the old place.
    void replace(const Interval& left, const Interval& right) {
        const bool swap = right.error > left.error;
        intervals_.list[intervals_.largest] = swap ? right : left;
        intervals_.list.push_back(swap ? left : right);
        intervals_.sort();
    }

    // The epsilon algorithm takes part once the interval to bisect is a smallest one, and only
    // after the larger intervals have been improved.
    Next extrapolate() {
        if (!extrapolating_) {
            if (intervals_.width(intervals_.largest) > small_) return Next::go_on;
            extrapolating_ = true;
            intervals_.rank = 1;
        }
        if (!table_fault_ && large_error_ > error_test_) {
            const int ranks = intervals_.ranks();
            for (int k = intervals_.rank; k < ranks; ++k) {
                intervals_.choose(intervals_.rank);
                if (intervals_.width(intervals_.largest) > small_) return Next::go_on;
                ++intervals_.rank;
            }
        }
        const EpsilonTable::Limit limit = table_.append(area_);
        ++idle_;
        if (idle_ > 5 && error_ < 1e-3 * error_sum_) fault_ = 5;
        if (limit.error < error_) {
            idle_ = 0;
            error_ = limit.error;
            value_ = limit.value;
            correction_ = large_error_;
            error_test_ = tolerance(limit.value);
            if (error_ <= error_test_) return Next::extrapolated;
        }
        if (table_.size == 1) no_extrapolation_ = true;
        if (fault_ == 5) return Next::extrapolated;
        intervals_.choose(0);
        extrapolating_ = false;
        small_ *= 0.5;
        large_error_ = error_sum_;
        return Next::go_on;
    }

    // Whether the extrapolated result is better than the plain sum.
    bool settle() {
        if (error_ == kLargest) return false;
        if (fault_ != 0 || table_fault_) {
            if (table_fault_) error_ += correction_;
            if (fault_ == 0) fault_ = 3;
            if (value_ != 0.0 && area_ != 0.0) {
                if (error_ / std::abs(value_) > error_sum_ / std::abs(area_)) return false;
            } else {
                if (error_ > error_sum_) return false;
                if (area_ == 0.0) return true;
            }
        }
        const bool one_sign = std::abs(first_.value) >= (1.0 - 50.0 * kEpsilon) * first_.absolute;
        if (!one_sign && std::max(std::abs(value_), std::abs(area_)) <= first_.absolute * 0.01) {
            return true;
        }
        const double ratio = value_ / area_;
        if (0.01 > ratio || ratio > 100.0 || error_sum_ > std::abs(area_)) fault_ = 6;
        return true;
    }

    QuadratureResult sum() const {
        double value = 0.0;
        for (const Interval& interval : intervals_.list) value += interval.value;
        return result(value, error_sum_);
    }

    QuadratureResult result(double value, double error) const {
        const int fault = fault_ > 2 ? fault_ - 1 : fault_;
        return {value, error, 42 * static_cast<int>(intervals_.list.size()) - 21,
                static_cast<QuadratureStatus>(fault)};
    }

    const Integrand& f_;
    const double absolute_, relative_;
    const int limit_;
    const Panel first_;  // of the whole interval
    Intervals intervals_;
    EpsilonTable table_;
    int fault_ = 0;             // "ier"
    bool table_fault_ = false;  // "ierro"
    double area_ = 0, error_sum_ = 0;
    double value_ = 0, error_ = kLargest;  // of the extrapolation
    double correction_ = 0, small_ = 0, large_error_ = 0, error_test_ = 0;
    bool extrapolating_ = false, no_extrapolation_ = false;
    int roundoff1_ = 0, roundoff2_ = 0, roundoff3_ = 0, idle_ = 0;
};

}  // namespace

QuadratureResult gauss_kronrod_21(const Integrand& f, double a, double b) {
    const Panel panel = panel_21(f, a, b);
    return {panel.value, panel.error, 21, QuadratureStatus::converged};
}

QuadratureResult qags(const Integrand& f, double a, double b, double absolute, double relative,
                      int limit) {
    assert(limit >= 1 && (absolute > 0.0 || relative >= 50.0 * kEpsilon));
    return Qags(f, a, b, absolute, relative, limit).run();
}

}  // namespace lmo
