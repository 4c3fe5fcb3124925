// Ranks as threads of this process: collectives, and what becomes of ranks that fail. Real
// processes are in tests/integration/test_ranks.py.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <thread>

#include "llmc/core/timer.h"
#include "llmc/dist/ownership.h"
#include "llmc/dist/ranks.h"
#include "llmc/dist/socket.h"

namespace lmo {
namespace {

Meeting meeting(const std::string& name) {
    return {"lmo.cu-test-" + std::to_string(::getpid()) + "-" + name, "", 0};
}

// What each rank threw, or "".
std::vector<std::string> on_ranks(int size, const Meeting& where,
                                  const std::function<void(Ranks&)>& body) {
    std::vector<std::string> errors(static_cast<size_t>(size));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
        threads.emplace_back([&, rank] {
            try {
                Ranks ranks(Place{rank, size, "test", where});
                body(ranks);
            } catch (const Error& error) {
                errors[static_cast<size_t>(rank)] = error.what();
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    return errors;
}

std::vector<std::string> no_errors(int size) {
    return std::vector<std::string>(static_cast<size_t>(size));
}

// Numbers whose sum depends on the order of addition.
float number(int rank, int64_t i) {
    return (rank % 2 ? -1e8f : 1e8f) + static_cast<float>(rank * 7 + i % 13) * 0.37f;
}

TEST(Ranks, SumsInTheOrderOfTheRanks) {
    for (const int size : {2, 3, 4}) {
        for (const int64_t count :
             {int64_t{1}, int64_t{3}, int64_t{1001}, (int64_t{1} << 20) + 5}) {
            std::vector<float> expected(static_cast<size_t>(count));
            for (int64_t i = 0; i < count; ++i) {
                float sum = number(0, i);
                for (int r = 1; r < size; ++r) sum += number(r, i);
                expected[static_cast<size_t>(i)] = sum;
            }
            const auto errors = on_ranks(size, meeting("sum"), [&](Ranks& ranks) {
                std::vector<float> values(static_cast<size_t>(count));
                for (int64_t i = 0; i < count; ++i) {
                    values[static_cast<size_t>(i)] = number(ranks.rank(), i);
                }
                ranks.sum(values.data(), count, "test");
                EXPECT_TRUE(values == expected) << size << " ranks, " << count << " numbers";
                EXPECT_GT(ranks.bytes_sent(), 0);
            });
            EXPECT_EQ(errors, no_errors(size));
        }
    }
}

TEST(Ranks, OneRankNeedsNobody) {
    Ranks alone;
    double value = 3.0;
    alone.sum(&value, 1, "test");
    EXPECT_EQ(value, 3.0);
    EXPECT_EQ(alone.gather(7, "test"), std::vector<int>{7});
    EXPECT_EQ(alone.broadcast("text", "test"), "text");
    EXPECT_TRUE(alone.any(true, "test"));
    EXPECT_EQ(alone.bytes_sent(), 0);
}

TEST(Ranks, GatherBroadcastAny) {
    const auto errors = on_ranks(3, meeting("gather"), [](Ranks& ranks) {
        EXPECT_EQ(ranks.gather(ranks.rank() * 10, "test"), (std::vector<int>{0, 10, 20}));
        const std::string own = "of rank " + std::to_string(ranks.rank());
        EXPECT_EQ(ranks.broadcast(own, "test"), "of rank 0");
        EXPECT_EQ(ranks.broadcast("", "test"), "");
        EXPECT_FALSE(ranks.any(false, "test"));
        EXPECT_TRUE(ranks.any(ranks.rank() == 2, "test"));
        double value = 0.1 * (ranks.rank() + 1);
        ranks.sum(&value, 1, "test");
        EXPECT_EQ(value, 0.1 * 1 + 0.1 * 2 + 0.1 * 3);
        ranks.require_equal(5, "test", "");
    });
    EXPECT_EQ(errors, no_errors(3));
}

TEST(Ranks, MeetByInternetAddress) {
    Socket any = listen_at({"", "", 0}, true);  // on a port that is free
    const int port = port_of(any);
    const Meeting there{"", "127.0.0.1", port};
    EXPECT_EQ(to_string(there), "127.0.0.1:" + std::to_string(port));
    try {
        Ranks ranks(Place{0, 2, "test", there});
        FAIL() << "the port is in use";
    } catch (const Error& error) {
        EXPECT_EQ(std::string(error.what()),
                  "rank 0 cannot listen on port " + std::to_string(port) +
                      ": Address already in use; another program uses it: set MASTER_ADDR, and "
                      "MASTER_PORT to a free port, for all ranks");
    }
    any.close();
    const auto errors = on_ranks(4, there, [](Ranks& ranks) {
        EXPECT_EQ(ranks.gather(ranks.rank(), "test"), (std::vector<int>{0, 1, 2, 3}));
    });
    EXPECT_EQ(errors, no_errors(4));
}

TEST(Ranks, AnotherCollectiveIsNamed) {
    const auto errors = on_ranks(2, meeting("disagree"), [](Ranks& ranks) {
        ranks.barrier("start");
        if (ranks.rank() == 0) ranks.barrier("loss");
        double values[2] = {};
        if (ranks.rank() == 1) ranks.sum(values, 2, "gradients");
    });
    const std::string end = "; do all ranks run the same program with the same configuration?";
    const std::string loss = "'loss' (collective 3, 1 bytes)",
                      sum = "'gradients' (collective 3, 8 bytes)";
    // Both notice, or one does first and tells the other.
    for (const std::string& error : errors) {
        const bool first = error == "rank 1 is at " + sum + ", rank 0 at " + loss + end;
        const bool second = error == "rank 0 is at " + loss + ", rank 1 at " + sum + end;
        EXPECT_TRUE(first || second) << error;
    }
}

TEST(Ranks, ADeadRankIsNamed) {
    const auto errors = on_ranks(3, meeting("dead"), [](Ranks& ranks) {
        ranks.barrier("start");
        if (ranks.rank() != 1) ranks.barrier("loss");
    });
    const std::string text =
        "rank 1 ended without a word at 'loss', so all ranks stop; was it "
        "killed, for lack of memory perhaps?";
    EXPECT_EQ(errors, (std::vector<std::string>{text, "", text}));
}

TEST(Ranks, AStalledRankIsNamed) {
    const auto errors = on_ranks(3, meeting("stalled"), [](Ranks& ranks) {
        ranks.set_timeout(0.3);
        ranks.barrier("start");
        if (ranks.rank() == 2) std::this_thread::sleep_for(std::chrono::seconds(2));
        const Timer timer;
        try {
            ranks.barrier("loss");
        } catch (...) {
            EXPECT_LT(timer.seconds(), 1.5);
            throw;
        }
    });
    const std::string text =
        "rank 2 did not come to 'loss' within 0.3 s (run.rank_timeout), so all "
        "ranks stop; a stopped or overloaded machine, or a lost connection?";
    // Rank 2 comes late and is told.
    EXPECT_EQ(errors, (std::vector<std::string>(3, text)));
}

TEST(Ranks, WhatRankZeroDoesAloneMayTakeLong) {
    const auto errors = on_ranks(2, meeting("long"), [](Ranks& ranks) {
        ranks.set_timeout(1.5);
        int done = 0;
        ranks.on_first("checkpoint", [&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(3200));
            done = 1;
        });
        ranks.broadcast(&done, sizeof done, "test");
        EXPECT_EQ(done, 1);
    });
    EXPECT_EQ(errors, no_errors(2));
}

TEST(Ranks, AnErrorOfOneRankIsShownByRankZero) {
    std::vector<std::string> shown(3);
    std::vector<int> statuses(3, -1);
    on_ranks(3, meeting("error"), [&](Ranks& ranks) {
        const size_t rank = static_cast<size_t>(ranks.rank());
        try {
            if (rank == 2) throw UsageError("no such file");
            ranks.barrier("loss");
        } catch (const Error& error) {
            std::string text;
            if (ranks.fails(error, text)) shown[rank] = text;
            statuses[rank] = static_cast<int>(error.status());
        }
    });
    EXPECT_EQ(shown, (std::vector<std::string>{"rank 2: no such file", "", ""}));
    EXPECT_EQ(statuses, (std::vector<int>(3, 2)));
}

TEST(Ranks, UnequalNumbersAreFoundByAll) {
    const auto errors = on_ranks(3, meeting("unequal"), [](Ranks& ranks) {
        ranks.require_equal(ranks.rank() == 1 ? 8 : 7, "test", "has other data than rank 0");
    });
    EXPECT_EQ(errors, (std::vector<std::string>(3, "rank 1: has other data than rank 0")));
}

// Pieces of unequal size, some ranks without any, gaps that belong to nobody.
std::vector<Piece> pieces_for(int ranks) {
    std::vector<Piece> pieces;
    int64_t offset = 0;
    const int64_t counts[] = {1, 700, (int64_t{1} << 18) + 3, 64, 5};
    for (int i = 0; i < 5; ++i) {
        pieces.push_back({(i * 3 + 1) % ranks, offset, counts[i]});
        offset += counts[i] + (i == 2 ? 13 : 0);
    }
    return pieces;
}

TEST(Ranks, OwnersGetTheSameSumsAndShare) {
    for (const int size : {2, 3, 7}) {
        const std::vector<Piece> pieces = pieces_for(size);
        const int64_t count = pieces.back().offset + pieces.back().count;
        const auto errors = on_ranks(size, meeting("owners"), [&](Ranks& ranks) {
            std::vector<float> mine(static_cast<size_t>(count));
            for (int64_t i = 0; i < count; ++i) {
                mine[static_cast<size_t>(i)] = number(ranks.rank(), i);
            }
            std::vector<float> all = mine, owned = mine;
            ranks.sum(all.data(), count, "all");
            ranks.sum_to_owners(owned.data(), pieces, "owned");
            std::vector<bool> is_mine(static_cast<size_t>(count), false);
            for (const Piece& piece : pieces) {
                for (int64_t i = piece.offset; i < piece.offset + piece.count; ++i) {
                    is_mine[static_cast<size_t>(i)] = piece.owner == ranks.rank();
                }
            }
            int64_t wrong = 0;
            for (size_t i = 0; i < mine.size(); ++i) {
                wrong += owned[i] != (is_mine[i] ? all[i] : mine[i]);
            }
            EXPECT_EQ(wrong, 0) << size << " ranks";
            ranks.share(owned.data(), pieces, "shared");
            wrong = 0;
            for (const Piece& piece : pieces) {
                for (int64_t i = piece.offset; i < piece.offset + piece.count; ++i) {
                    wrong += owned[static_cast<size_t>(i)] != all[static_cast<size_t>(i)];
                }
            }
            EXPECT_EQ(wrong, 0) << size << " ranks";
        });
        EXPECT_EQ(errors, no_errors(size));
    }
}

// Both ways, and how much they send.
TEST(Ranks, EvenExchangesAreTakenWhereOwnersAreNotEven) {
    const std::vector<Piece> even = {{0, 0, 300}, {1, 300, 301}, {2, 601, 299}};
    EXPECT_FALSE(exchange_plan(even, 3).two_steps);
    EXPECT_DOUBLE_EQ(exchange_plan(even, 3).mean, 900 * 2.0 / 3);
    EXPECT_DOUBLE_EQ(exchange_plan(even, 3).busiest, 2 * 301);
    // Rank 1 owns nearly all: of its 900 all but its own slice are handed on.
    const std::vector<Piece> uneven = {{1, 0, 900}, {0, 900, 30}, {3, 930, 30}};
    const ExchangePlan plan = exchange_plan(uneven, 4);
    EXPECT_TRUE(plan.two_steps);
    EXPECT_DOUBLE_EQ(plan.busiest, 960 * 0.75 + 660);
    // Rank 0's slice holds 210 elements of others, those of rank 2 and 3 hold 240 and 210.
    EXPECT_DOUBLE_EQ(plan.mean, 960 * 0.75 + (210 + 240 + 210) / 4.0);
    for (const int size : {3, 4}) {
        const std::vector<Piece>& pieces = size == 3 ? even : uneven;
        const ExchangePlan expected = exchange_plan(pieces, size);
        std::vector<int64_t> sent(static_cast<size_t>(size), 0);
        on_ranks(size, meeting("even"), [&](Ranks& ranks) {
            std::vector<double> values(1000, 1.0);
            const int64_t before = ranks.bytes_sent();
            ranks.sum_to_owners(values.data(), pieces, "sum");
            sent[static_cast<size_t>(ranks.rank())] = ranks.bytes_sent() - before;
            ranks.barrier("end");
        });
        double all = 0.0;
        for (const int64_t bytes : sent) all += static_cast<double>(bytes);
        const double planned = 8 * size * expected.mean;
        EXPECT_GE(all, planned);
        EXPECT_LE(all, planned + size * size * 300);  // headers
    }
}

// What ranks do outside of these collectives, such as those of their devices.
TEST(Ranks, WaitTogether) {
    const auto errors = on_ranks(3, meeting("together"), [](Ranks& ranks) {
        const Timer timer;
        ranks.barrier("start");
        ranks.wait_together("test", [&] { return timer.seconds() > 0.02 * ranks.rank(); });
        EXPECT_EQ(ranks.gather(ranks.rank(), "after"), (std::vector<int>{0, 1, 2}));
    });
    EXPECT_EQ(errors, no_errors(3));
}

// The first has gone on to the next collective, whose data wait for the others.
TEST(Ranks, WaitTogetherAfterOtherRanks) {
    const auto errors = on_ranks(2, meeting("after"), [](Ranks& ranks) {
        ranks.set_timeout(2.5);
        const Timer timer;
        ranks.wait_together("test", [&] { return ranks.first() || timer.seconds() > 1.5; });
        EXPECT_EQ(ranks.gather(ranks.rank() + 5, "next"), (std::vector<int>{5, 6}));
    });
    EXPECT_EQ(errors, no_errors(2));
}

TEST(Ranks, WhatGoesWrongWhileTheyWaitTogether) {
    const auto never = [] { return false; };
    auto errors = on_ranks(3, meeting("gone"), [&](Ranks& ranks) {
        ranks.barrier("start");
        if (ranks.rank() == 1) return;  // ends without a word
        ranks.wait_together("test", never);
    });
    EXPECT_EQ(errors[1], "");
    for (const int r : {0, 2}) {
        EXPECT_EQ(errors[static_cast<size_t>(r)].substr(0, 39),
                  "rank 1 ended without a word at 'test', ");
    }
    errors = on_ranks(2, meeting("fails"), [&](Ranks& ranks) {
        ranks.barrier("start");
        if (ranks.rank() == 1) {
            std::string text;
            ranks.fails(Error("no disk"), text);
            return;
        }
        ranks.wait_together("test", never);
    });
    EXPECT_EQ(errors[0], "rank 1: no disk");
    errors = on_ranks(2, meeting("silent"), [&](Ranks& ranks) {
        ranks.set_timeout(0.3);
        ranks.barrier("start");
        if (ranks.rank() == 1) {
            std::this_thread::sleep_for(std::chrono::milliseconds(900));
            return;
        }
        ranks.wait_together("test", never);
    });
    EXPECT_EQ(errors[0].substr(0, 50), "rank 1 gave no sign of life in 'test' for 0.3 s, s");
    // One that stops shortly before time is up is named as well.
    errors = on_ranks(2, meeting("late"), [&](Ranks& ranks) {
        ranks.set_timeout(1.0);
        ranks.barrier("start");
        const Timer timer;
        if (ranks.first()) ranks.wait_together("test", never);
        ranks.wait_together("test", [&] { return timer.seconds() > 0.8; });
        std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    });
    EXPECT_EQ(errors[0].substr(0, 46), "rank 1 gave no sign of life in 'test' for 1 s,");
    errors = on_ranks(2, meeting("endless"), [&](Ranks& ranks) {
        ranks.set_timeout(0.5);
        ranks.barrier("start");
        ranks.wait_together("test", never);
    });
    EXPECT_NE((errors[0] + errors[1]).find("'test' did not end within 0.5 s (run.rank_timeout), though"),
              std::string::npos);
}

TEST(Ranks, OneHandsToTheFirst) {
    const auto errors = on_ranks(3, meeting("hand"), [](Ranks& ranks) {
        for (const int owner : {0, 1, 2}) {
            int value = ranks.rank() == owner ? 40 + owner : -1;
            ranks.hand_to_first(owner, &value, sizeof value, "test");
            if (!ranks.first()) continue;
            EXPECT_EQ(value, 40 + owner);
        }
        ranks.barrier("end");
    });
    EXPECT_EQ(errors, no_errors(3));
}

TEST(Ownership, LongestFirstToTheLeastLoaded) {
    EXPECT_EQ(deal({3, 3, 2, 2, 2}, 2), (std::vector<int>{0, 1, 0, 1, 0}));
    EXPECT_EQ(deal({1, 5, 2}, 2), (std::vector<int>{1, 0, 1}));
    EXPECT_EQ(deal({1, 1}, 4), (std::vector<int>{0, 1}));
    EXPECT_EQ(deal({1, 2, 3}, 1), (std::vector<int>{0, 0, 0}));
    EXPECT_TRUE(deal({}, 3).empty());
    // Never worse than 4/3 of the best (Graham 1969): here 84 matrices of four costs over 8 ranks.
    std::vector<double> costs;
    for (int layer = 0; layer < 12; ++layer)
        costs.insert(costs.end(), {20, 20, 20, 20, 30, 30, 30});
    std::vector<double> load(8, 0.0);
    const std::vector<int> owners = deal(costs, 8);
    for (size_t i = 0; i < costs.size(); ++i) load[static_cast<size_t>(owners[i])] += costs[i];
    EXPECT_LE(*std::max_element(load.begin(), load.end()), 1.05 * 12 * 170 / 8);
}

using Variables = std::map<std::string, std::string>;

Place place_of(const Variables& variables) {
    return find_place([&](const char* name) {
        const auto found = variables.find(name);
        return found == variables.end() ? nullptr : found->second.c_str();
    });
}

std::string error_of(const Variables& variables) {
    try {
        place_of(variables);
    } catch (const UsageError& error) {
        return error.what();
    }
    return "no error";
}

TEST(Place, OfEachLauncher) {
    EXPECT_EQ(place_of({}).size, 1);
    EXPECT_EQ(place_of({{"WORLD_SIZE", "1"}}).size, 1);

    Place place = place_of(
        {{"RANK", "3"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "node1"}, {"MASTER_PORT", "1234"}});
    EXPECT_EQ(place.rank, 3);
    EXPECT_EQ(place.size, 4);
    EXPECT_EQ(to_string(place.meeting), "node1:1234");
    // torchrun keeps its own store on the port
    place = place_of({{"RANK", "0"},
                      {"WORLD_SIZE", "2"},
                      {"MASTER_ADDR", "127.0.0.1"},
                      {"MASTER_PORT", "1234"},
                      {"TORCHELASTIC_USE_AGENT_STORE", "True"}});
    EXPECT_EQ(to_string(place.meeting), "127.0.0.1:1235");

    Variables ompi = {{"OMPI_COMM_WORLD_RANK", "1"},
                      {"OMPI_COMM_WORLD_SIZE", "2"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                      {"PMIX_NAMESPACE", "77"},
                      {"SLURM_PROCID", "0"},
                      {"SLURM_STEP_NUM_TASKS", "9"}};
    place = place_of(ompi);
    EXPECT_EQ(place.rank, 1);
    EXPECT_EQ(place.meeting.local, "lmo.cu-" + std::to_string(::getuid()) + "-ompi-77");
    ompi["MASTER_ADDR"] = "node0";
    EXPECT_EQ(to_string(place_of(ompi).meeting), "node0:29500");
    EXPECT_EQ(place_of(ompi).meeting.run, "ompi-77");

    place = place_of({{"PMI_RANK", "1"}, {"PMI_SIZE", "4"}, {"MPI_LOCALNRANKS", "4"}});
    EXPECT_EQ(place.rank, 1);
    EXPECT_FALSE(place.meeting.local.empty());

    Variables slurm = {{"SLURM_PROCID", "5"},         {"SLURM_STEP_NUM_TASKS", "8"},
                       {"SLURM_STEP_NUM_NODES", "2"}, {"SLURM_STEP_ID", "3"},
                       {"SLURM_JOB_ID", "123456"},    {"SLURM_STEP_NODELIST", "gpu[007-008]"}};
    place = place_of(slurm);
    EXPECT_EQ(place.rank, 5);
    EXPECT_EQ(to_string(place.meeting), "gpu007:26483");
    EXPECT_EQ(place.meeting.run, "slurm-123456.3");
    slurm["SLURM_STEP_ID"] = "4";  // at the same time, on the same machines
    EXPECT_EQ(to_string(place_of(slurm).meeting), "gpu007:27492");
    slurm["SLURM_STEP_ID"] = "3";
    slurm["SLURM_STEP_NUM_NODES"] = "1";
    EXPECT_EQ(place_of(slurm).meeting.local,
              "lmo.cu-" + std::to_string(::getuid()) + "-slurm-123456.3");
    // The shell of a batch script is one process, whatever the job asked for.
    EXPECT_EQ(place_of({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}}).size, 1);
}

TEST(Place, NeverOneRankInsteadOfSeveral) {
    EXPECT_EQ(error_of({{"WORLD_SIZE", "4"}}),
              "environment variable WORLD_SIZE = 4 but RANK is not set, so which rank is this? Set "
              "RANK, MASTER_ADDR and MASTER_PORT too, or unset WORLD_SIZE to train with one rank");
    EXPECT_EQ(error_of({{"WORLD_SIZE", "two"}}),
              "environment variable WORLD_SIZE = \"two\": expected a whole number from 1 to 1024");
    EXPECT_EQ(error_of({{"RANK", "4"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "a"}}),
              "environment variable RANK = \"4\": expected a whole number from 0 to 3");
    EXPECT_NE(error_of({{"RANK", "1"}, {"WORLD_SIZE", "4"}}).find("set MASTER_ADDR"),
              std::string::npos);
    EXPECT_NE(error_of({{"OMPI_COMM_WORLD_RANK", "1"},
                        {"OMPI_COMM_WORLD_SIZE", "4"},
                        {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}})
                  .find("mpirun started 4 ranks on several machines; set MASTER_ADDR"),
              std::string::npos);
}

TEST(Place, FirstHostOfALine) {
    EXPECT_EQ(first_host("node1"), "node1");
    EXPECT_EQ(first_host("node1,node2"), "node1");
    EXPECT_EQ(first_host("a[007-009,12],b"), "a007");
    EXPECT_EQ(first_host("a[3,5]"), "a3");
    EXPECT_EQ(first_host("a[12]"), "a12");
}

}  // namespace
}  // namespace lmo
