// Extrapolation for quadrature.cpp, in QUADPACK's order of operations.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace lmo {

// Wynn's epsilon algorithm (QELG): the lower diagonal of the epsilon table, which each new partial
// result extends.
class EpsilonTable {
  public:
    // The first entry; then `size` entries are in use, the last of which set() fills.
    void set(int place, double value) { table_[static_cast<size_t>(place)] = value; }
    int size = 0;

    struct Limit {
        double value, error;
    };

    // Appends `value`; returns the best guess of the limit and its error.
    Limit append(double value) {
        set(size++, value);
        ++calls_;
        const auto guarded = [](Limit limit) {
            limit.error = std::max(limit.error, 5.0 * kMachine * std::abs(limit.value));
            return limit;
        };
        Limit best = {value, kLargest};
        if (size < 3) return guarded(best);
        if (extend(best)) return guarded(best);  // converged to machine accuracy
        if (calls_ < 4) {
            latest_[static_cast<size_t>(calls_ - 1)] = best.value;
            best.error = kLargest;
        } else {
            best.error = std::abs(best.value - latest_[2]) + std::abs(best.value - latest_[1]) +
                         std::abs(best.value - latest_[0]);
            latest_ = {latest_[1], latest_[2], best.value};
        }
        return guarded(best);
    }

  private:
    static constexpr int kMost = 50;  // entries kept
    static constexpr double kMachine = std::numeric_limits<double>::epsilon();
    static constexpr double kLargest = std::numeric_limits<double>::max();

    // The new diagonal. True: three neighbours agree and `best` is final.
    bool extend(Limit& best) {
        const int count = size, fresh = (size - 1) / 2;
        double* const t = table_.data();
        t[size + 1] = t[size - 1];
        t[size - 1] = kLargest;
        int k = size - 1;
        for (int i = 0; i < fresh; ++i, k -= 2) {
            const double e0 = t[k - 2], e1 = t[k - 1], e2 = t[k + 2];
            const double delta2 = e2 - e1, delta3 = e1 - e0;
            const double error2 = std::abs(delta2), error3 = std::abs(delta3);
            const double tolerance2 = std::max(std::abs(e2), std::abs(e1)) * kMachine;
            const double tolerance3 = std::max(std::abs(e1), std::abs(e0)) * kMachine;
            if (error2 <= tolerance2 && error3 <= tolerance3) {
                best = {e2, error2 + error3};
                return true;
            }
            const double e3 = t[k];
            t[k] = e1;
            const double delta1 = e1 - e3;
            const double tolerance1 = std::max(std::abs(e1), std::abs(e3)) * kMachine;
            // Two neighbours too close, or an irregular place: leave out the rest of the table.
            if (std::abs(delta1) <= tolerance1 || error2 <= tolerance2 || error3 <= tolerance3) {
                size = 2 * i + 1;
                break;
            }
            const double s = 1.0 / delta1 + 1.0 / delta2 - 1.0 / delta3;
            if (!(std::abs(s * e1) > 1e-4)) {
                size = 2 * i + 1;
                break;
            }
            const double guess = e1 + 1.0 / s;
            t[k] = guess;
            const double error = error2 + std::abs(guess - e2) + error3;
            if (error <= best.error) best = {guess, error};
        }
        shift(count, fresh);
        return false;
    }

    void shift(int count, int fresh) {
        if (size == kMost) size = 2 * (kMost / 2) - 1;
        for (int i = 0, at = count % 2 == 0 ? 1 : 0; i <= fresh; ++i, at += 2) {
            table_[static_cast<size_t>(at)] = table_[static_cast<size_t>(at) + 2];
        }
        if (count == size) return;
        std::copy_n(table_.begin() + (count - size), size, table_.begin());
    }

    std::array<double, kMost + 3> table_{};
    std::array<double, 3> latest_{};
    int calls_ = 0;
};

}  // namespace lmo
