// What the tests of seeded bugs share. A case is a small kernel with its host code, a function of
// the number of a bug: 0 is the correct kernel, every other number puts in one mistake. A table
// says for each mistake which finding each build of the emulator has to come to.
//
// Every run is a process of its own, because a finding ends a launch half way, and AddressSanitizer
// the whole process. What it prints last is the finding; a clean run prints nothing.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "llmc/cuda/common.cuh"

namespace lmo::cuda {

// ---- the table ----------------------------------------------------------------------------------

// Not demanded: this build may well miss the bug.
constexpr const char* kMissed = "-";
// A change that does no harm: a finding would be a false alarm.
constexpr const char* kClean = "";
// The comparison with the reference finds it.
constexpr const char* kWrong = "WRONG";

// Parts of the emulator's messages.
constexpr const char* kUninitialised = "uninitialised";
constexpr const char* kRace = "race";
constexpr const char* kBounds = "out of bounds";
// What the plain build says of an access outside: by its guard pages, by the canary behind an
// allocation, or because the emulator itself made the access.
constexpr const char* kOutside = "invalid address|overrun|outside the shared|out of bounds";
constexpr const char* kDivergence = "diverge";
constexpr const char* kMask = "mask";
constexpr const char* kAlignment = "misaligned";
// The asan build: AddressSanitizer, UBSan's check of an array index, or a signal far outside.
constexpr const char* kAsan = "AddressSanitizer|runtime error|invalid address|out of bounds";

// The columns hold a part of the finding's text, or several parts separated by '|', any of which
// will do.
struct SeededBug {
    int number;
    const char* what;
    const char* plain;   // threads in ascending order, copies as late as possible
    const char* orders;  // plain build: at least one of the other orders and landings
    const char* asan;    // in the order of `plain`
    const char* race;    // in the order of `plain`
};

using Case = std::function<void(int bug)>;

// ---- data ---------------------------------------------------------------------------------------

// What a case throws when the device's results are not the reference's.
struct WrongResult : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// tolerance: of the difference, relative to max(1, |expected|).
inline void expect_near(const char* name, int64_t index, double actual, double expected,
                        double tolerance) {
    if (std::fabs(actual - expected) <= tolerance * std::fmax(1.0, std::fabs(expected))) return;
    char text[160];
    snprintf(text, sizeof text, "WRONG %s[%ld]: %g, not %g", name, static_cast<long>(index), actual,
             expected);
    throw WrongResult(text);
}

// Values in [-1, 1) that look random, a function of seed and index.
inline float some_value(uint32_t seed, size_t i) {
    uint64_t x = (uint64_t{seed} << 40) + i + 1;
    x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
    return static_cast<float>(static_cast<double>(x >> 11) / (1ull << 52) - 1.0);
}

template <typename T>
std::vector<T> some_values(size_t count, uint32_t seed) {
    std::vector<T> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = from_float<T>(some_value(seed, i));
    return values;
}

// The device's allocations of this process; freed after the case, so that what the emulator notices
// at that moment is a finding too.
inline std::vector<void*>& allocations() {
    static std::vector<void*> pointers;
    return pointers;
}

// Device memory without content.
template <typename T>
T* device_array(size_t count) {
    void* pointer = nullptr;
    check(cudaMalloc(&pointer, count * sizeof(T)), "allocating");
    allocations().push_back(pointer);
    return static_cast<T*>(pointer);
}

template <typename T>
T* device_copy(const std::vector<T>& values) {
    T* const pointer = device_array<T>(values.size());
    check(cudaMemcpy(pointer, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
          "copying in");
    return pointer;
}

template <typename T>
std::vector<T> host_copy(const T* pointer, size_t count) {
    std::vector<T> values(count);
    check(cudaMemcpy(values.data(), pointer, count * sizeof(T), cudaMemcpyDeviceToHost),
          "copying out");
    return values;
}

// ---- one run ------------------------------------------------------------------------------------

using Settings = emulator::Settings;

inline void run_to_the_end(const Case& of, int bug) {
    of(bug);
    check(cudaDeviceSynchronize(), "waiting");
    for (void* pointer : allocations()) check(cudaFree(pointer), "freeing");
}

// The finding of one run in a process of its own; empty if there is none.
inline std::string finding(const Case& of, int bug, const Settings& settings) {
    int ends[2];
    if (pipe(ends) != 0) return "no pipe";
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        alarm(60);
        emulator::settings() = settings;
        try {
            run_to_the_end(of, bug);
        } catch (const std::exception& error) {
            fprintf(stderr, "%s\n", error.what());
            _exit(1);
        }
        _exit(0);
    }
    close(ends[1]);
    std::string text;
    char part[4096];
    for (ssize_t count; (count = read(ends[0], part, sizeof part)) > 0;) {
        text.append(part, static_cast<size_t>(count));
    }
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (status == 0) return "";
    return text.empty() ? "ended with status " + std::to_string(status) : text;
}

// ---- the tests ----------------------------------------------------------------------------------

enum class Build { plain, asan, race };
#if defined(LMO_EMULATOR_RACE)
constexpr Build kBuild = Build::race;
#elif defined(LMO_EMULATOR_ASAN)
constexpr Build kBuild = Build::asan;
#else
constexpr Build kBuild = Build::plain;
#endif

struct NamedSettings {
    std::string name;
    Settings settings;
};

// The settings under which a correct kernel is clean; the first is the usual one.
inline std::vector<NamedSettings> all_settings() {
    using emulator::Landing;
    using emulator::Order;
    using emulator::StreamOrder;
    const auto make = [](const char* name, Order order, uint64_t seed, Landing landing,
                         StreamOrder streams = StreamOrder::eager) {
        NamedSettings named{name, {}};
        named.settings.order = order;
        named.settings.seed = seed;
        named.settings.async_copies = landing;
        named.settings.streams = streams;
        return named;
    };
    std::vector<NamedSettings> all = {
        make("ascending", Order::ascending, 1, Landing::late),
        make("descending", Order::descending, 1, Landing::late),
        make("copies land early", Order::ascending, 1, Landing::early),
        make("random order 1", Order::random, 1, Landing::late),
        make("random order 2, copies land early", Order::random, 2, Landing::early),
        make("random order 3, copies land any time", Order::random, 3, Landing::random),
        make("random order 4, last stream first", Order::random, 4, Landing::late,
             StreamOrder::last),
        make("first stream first", Order::descending, 1, Landing::late, StreamOrder::first),
        make("streams at random", Order::ascending, 5, Landing::early, StreamOrder::random),
        make("real shuffles", Order::ascending, 1, Landing::late),
    };
    all.back().settings.real_shuffles = true;
    return all;
}

// `parts` as in SeededBug.
inline bool mentions(const std::string& finding, const std::string& parts) {
    for (size_t begin = 0; begin <= parts.size();) {
        const size_t end = std::min(parts.find('|', begin), parts.size());
        if (finding.find(parts.substr(begin, end - begin)) != std::string::npos) return true;
        begin = end + 1;
    }
    return false;
}

inline void expect_finding(const std::string& finding, const std::string& expected,
                           const std::string& where) {
    if (getenv("LMO_SHOW_FINDINGS")) {
        printf("%s: %s\n", where.c_str(),
               finding.empty() ? "nothing" : finding.substr(0, 400).c_str());
    }
    if (expected == kMissed) return;
    if (expected == kClean)
        EXPECT_EQ(finding, "") << where << ": a false alarm";
    else if (finding.empty())
        ADD_FAILURE() << where << ": not caught";
    else
        EXPECT_TRUE(mentions(finding, expected)) << where << ": not \"" << expected << "\" but\n"
                                                 << finding;
}

inline void expect_correct(const Case& of) {
    for (const NamedSettings& named : all_settings()) {
        expect_finding(finding(of, 0, named.settings), kClean, named.name);
    }
}

// At least one of the orders but the usual one comes to the finding; none, if it is kClean.
inline void expect_in_some_order(const Case& of, const SeededBug& bug) {
    if (std::string(bug.orders) == kMissed) return;
    const std::vector<NamedSettings> all = all_settings();
    for (size_t i = 1; i < all.size(); ++i) {
        const std::string found = finding(of, bug.number, all[i].settings);
        if (std::string(bug.orders) == kClean) {
            expect_finding(found, kClean, all[i].name);
        } else if (!found.empty()) {
            expect_finding(found, bug.orders, all[i].name);
            return;
        }
    }
    if (std::string(bug.orders) != kClean) ADD_FAILURE() << "not caught in any order";
}

inline void expect_caught(const Case& of, const SeededBug& bug) {
    const std::string usual = finding(of, bug.number, {});
    switch (kBuild) {
        case Build::plain:
            expect_finding(usual, bug.plain, "plain build");
            expect_in_some_order(of, bug);
            break;
        case Build::asan:
            expect_finding(usual, bug.asan, "asan build");
            break;
        case Build::race:
            expect_finding(usual, bug.race, "race build");
            break;
    }
}

class BugTest : public testing::Test {
  public:
    explicit BugTest(std::function<void()> body) : body_(std::move(body)) {}
    void TestBody() override { body_(); }

  private:
    std::function<void()> body_;
};

// "no barrier" becomes "NoBarrier".
inline std::string camel_case(const std::string& words) {
    std::string name;
    bool first = true;
    for (const char c : words) {
        if (isalnum(static_cast<unsigned char>(c))) {
            name += first ? static_cast<char>(toupper(static_cast<unsigned char>(c))) : c;
        }
        first = !isalnum(static_cast<unsigned char>(c));
    }
    return name;
}

// Adds the tests Bugs_NAME.CorrectIsClean and one for each line of the table. The result is only
// there so that a global variable can be initialised by this.
inline bool add_bug_tests(const std::string& name, const Case& of,
                          std::initializer_list<SeededBug> bugs, const char* file, int line) {
    const auto add = [&](const std::string& test, std::function<void()> body) {
        testing::RegisterTest(("Bugs_" + name).c_str(), test.c_str(), nullptr, nullptr, file, line,
                              [body]() -> testing::Test* { return new BugTest(body); });
    };
    add("CorrectIsClean", [of] { expect_correct(of); });
    for (const SeededBug& bug : bugs) {
        add(camel_case(bug.what), [of, bug] { expect_caught(of, bug); });
    }
    return true;
}

#define LMO_BUG_TESTS(name, of, ...)      \
    static const bool name##_bugs_added = \
        ::lmo::cuda::add_bug_tests(#name, of, {__VA_ARGS__}, __FILE__, __LINE__)

}  // namespace lmo::cuda
