// How ranks of several machines find each other, and what is not theirs. Launchers' variables are
// in test_ranks.cpp.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <thread>

#include "llmc/core/timer.h"
#include "llmc/dist/ranks.h"
#include "llmc/dist/socket.h"

namespace lmo {
namespace {

int free_port() { return port_of(listen_at({"", "", 0}, true)); }

std::string meets(int rank, int size, const Meeting& where) {
    try {
        Ranks ranks(Place{rank, size, "test", where});
        std::vector<int> all(static_cast<size_t>(size));
        for (int r = 0; r < size; ++r) all[static_cast<size_t>(r)] = r;
        return ranks.gather(rank, "test") == all ? "met" : "met others";
    } catch (const Error& error) {
        return error.what();
    }
}

// Two steps of a job, or whatever else a port was given to twice.
TEST(Meeting, ARankOfAnotherRunIsToldAndNotTaken) {
    const int port = free_port();
    const Meeting own{"", "127.0.0.1", port, "slurm-7.0"},
        other{"", "127.0.0.1", port, "slurm-7.1"};
    std::array<std::string, 2> said;
    std::thread first([&] { said[0] = meets(0, 2, own); });
    // It comes before the rank that is waited for, with the same number.
    EXPECT_EQ(meets(1, 2, other), "another run meets at 127.0.0.1:" + std::to_string(port) +
                                      "; set MASTER_ADDR, and MASTER_PORT to a free port, for all "
                                      "ranks of this one");
    said[1] = meets(1, 2, own);
    first.join();
    EXPECT_EQ(said, (std::array<std::string, 2>{"met", "met"}));
}

// Rank 0's machine may know itself by another address than the others do: what it sees of its own
// ranks is no address for them.
TEST(Meeting, OtherAddressesOfOneMachine) {
    const int port = free_port();
    std::array<std::string, 4> said;
    std::vector<std::thread> threads;
    for (int rank = 0; rank < 4; ++rank) {
        const std::string host = "127.0." + std::to_string(rank) + ".1";
        threads.emplace_back([&said, rank, host, port] {
            said[static_cast<size_t>(rank)] = meets(rank, 4, {"", host, port});
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::string& each : said) EXPECT_EQ(each, "met");
}

// Nobody answers, as where a firewall drops what comes: a listener whose queue is full.
TEST(Meeting, AnAttemptToConnectEnds) {
    const Socket listener = listen_at({"", "", 0}, true);
    ASSERT_EQ(::listen(listener.file(), 0), 0);
    const Meeting there{"", "127.0.0.1", port_of(listener)};
    std::vector<Socket> waiting;
    std::string reason;
    const Timer timer;
    for (int i = 0; i < 8 && reason.empty(); ++i) {
        waiting.push_back(try_connect(there, 0.3, &reason));
    }
    EXPECT_EQ(reason, "Connection timed out");
    EXPECT_FALSE(waiting.back().open());
    EXPECT_LT(timer.seconds(), 20.0);
    reason.clear();
    EXPECT_FALSE(try_connect({"", "127.0.0.1", free_port()}, 1.0, &reason).open());
    EXPECT_EQ(reason, "Connection refused");
}

}  // namespace
}  // namespace lmo
