// How the ranks meet: all come to rank 0, each says on which port it listens itself, and gets the
// table of these; then everyone connects to the ranks below it.
#include <algorithm>
#include <cstring>
#include <thread>

#include "llmc/core/timer.h"
#include "llmc/dist/mesh.h"

namespace lmo {

namespace {

constexpr char kMagic[8] = {'l', 'm', 'o', '.', 'c', 'u', '0', '2'};

struct Hello {
    char magic[8];
    int32_t rank, size, port;
    char run[64];
};
// host: how others reach it; empty: it is on rank 0's machine, which all have reached.
struct TableEntry {
    char host[64];
    int32_t port;
};

Hello hello_of(int rank, int size, int port, const std::string& run) {
    Hello hello{{}, rank, size, port, {}};
    std::memcpy(hello.magic, kMagic, sizeof kMagic);
    std::strncpy(hello.run, run.c_str(), sizeof hello.run - 1);
    return hello;
}

std::string run_of(const Hello& hello) {
    return std::string(hello.run, strnlen(hello.run, sizeof hello.run));
}

// A name of rank 0's machine may be its loopback there, and somebody else's elsewhere.
std::string host_for_others(const Socket& socket) {
    const std::string host = peer_host(socket);
    return host.starts_with("127.") ? "" : host;
}

bool receive_hello(const Socket& socket, Hello* hello) {
    return receive_all(socket, hello, sizeof *hello, 5.0) &&
           std::memcmp(hello->magic, kMagic, sizeof kMagic) == 0;
}

}  // namespace

Mesh::Mesh(const Place& place, double seconds)
    : rank_(place.rank), peers_(static_cast<size_t>(place.size)) {
    if (rank_ == 0) {
        meet_as_first(place.meeting, seconds);
    } else {
        meet_as_other(place.meeting, seconds);
    }
}

void Mesh::meet_as_first(const Meeting& meeting, double seconds) {
    const Socket listener = listen_at(meeting);
    const Timer timer;
    std::vector<TableEntry> table(peers_.size());
    int missing = size() - 1;
    while (missing > 0 && timer.seconds() < seconds) {
        Socket socket = accept_within(listener, seconds - timer.seconds());
        Hello hello;
        // Whatever else may knock at a port is not ours.
        if (!socket.open() || !receive_hello(socket, &hello)) continue;
        if (run_of(hello) != run_of(hello_of(0, size(), 0, meeting.run))) {
            turn_away(socket, hello.rank,
                      "another run meets at " + to_string(meeting) +
                          "; set MASTER_ADDR, and MASTER_PORT to a free port, for all ranks of "
                          "this one");
            continue;
        }
        const bool fits = hello.size == size() && hello.rank > 0 && hello.rank < size();
        if (!fits || peers_[static_cast<size_t>(hello.rank)].socket.open()) {
            throw Error("at " + to_string(meeting) + " came rank " + std::to_string(hello.rank) +
                        " of " + std::to_string(hello.size) + ", " +
                        (fits ? "for the second time" : "not of " + std::to_string(size())) +
                        "; do two runs use the same MASTER_PORT?");
        }
        TableEntry& entry = table[static_cast<size_t>(hello.rank)];
        std::strncpy(entry.host, host_for_others(socket).c_str(), sizeof entry.host - 1);
        entry.port = hello.port;
        peers_[static_cast<size_t>(hello.rank)].socket = std::move(socket);
        --missing;
    }
    if (missing > 0) {
        std::string ranks;
        for (int r = 1; r < size(); ++r) {
            if (!peers_[static_cast<size_t>(r)].socket.open()) ranks += " " + std::to_string(r);
        }
        const std::string text = "these ranks did not come to " + to_string(meeting) + " within " +
                                 std::to_string(static_cast<int>(seconds)) + " s:" + ranks;
        tell_failure(text, ExitStatus::runtime_error, 0);
        throw RanksFailed(text, ExitStatus::runtime_error, 0);
    }
    std::vector<Outgoing> out;
    const size_t bytes = table.size() * sizeof(TableEntry);
    for (int r = 1; r < size(); ++r) out.push_back({r, table.data(), bytes});
    exchange("meeting", out, {});
}

// A rank of another run has come: it is told, and this run waits for its own.
void Mesh::turn_away(const Socket& stranger, int rank, const std::string& text) {
    Header header;
    header.kind = Kind::failure;
    header.status = static_cast<int32_t>(ExitStatus::runtime_error);
    header.printer = rank;
    header.bytes = text.size();
    if (send_all(stranger, &header, sizeof header, 1.0)) {
        send_all(stranger, text.data(), text.size(), 1.0);
    }
}

// Rank 0 may start later than this one.
Socket Mesh::reach(const Meeting& meeting, const std::string& whom, const std::string& remedy,
                   double seconds) {
    const Timer timer;
    std::string reason;
    for (;;) {
        Socket socket = try_connect(meeting, seconds - timer.seconds(), &reason);
        if (socket.open()) return socket;
        if (timer.seconds() > seconds) {
            throw Error("rank " + std::to_string(rank_) + ": cannot reach " + whom + " at " +
                        to_string(meeting) + " within " +
                        std::to_string(static_cast<int>(seconds)) + " s: " + reason + remedy);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

void Mesh::meet_as_other(const Meeting& meeting, double seconds) {
    const Socket listener = listen_at({"", "", 0}, !meeting.local.empty());
    const char* const remedy = meeting.local.empty()
                                   ? "; set MASTER_ADDR to an address of rank 0's machine that all "
                                     "machines reach, and MASTER_PORT to a port that is free there"
                                   : "";
    peers_[0].socket = reach(meeting, "rank 0", remedy, seconds);
    const Hello hello = hello_of(rank_, size(), port_of(listener), meeting.run);
    std::vector<TableEntry> table(peers_.size());
    const Incoming in{0, table.data(), table.size() * sizeof(TableEntry)};
    // Rank 0 answers when the last one has come.
    timeout_ = 2 * seconds;
    if (!send_all(peers_[0].socket, &hello, sizeof hello, seconds)) {
        throw Error("rank " + std::to_string(rank_) + ": rank 0 at " + to_string(meeting) +
                    " has closed the connection");
    }
    exchange("meeting", {}, {&in, 1});
    std::vector<Meeting> others(table.size());
    for (size_t r = 1; r < table.size(); ++r) {
        table[r].host[sizeof table[r].host - 1] = '\0';
        const bool with_first = table[r].host[0] == '\0';
        const std::string host = !with_first             ? table[r].host
                                 : meeting.local.empty() ? meeting.host
                                                         : "127.0.0.1";
        others[r] = {"", host, table[r].port, meeting.run};
    }
    connect_others(others, listener, seconds);
    timeout_ = seconds;
}

// Those below this rank are connected to, those above it come.
void Mesh::connect_others(const std::vector<Meeting>& table, const Socket& listener,
                          double seconds) {
    for (int r = 1; r < rank_; ++r) {
        Peer& peer = peers_[static_cast<size_t>(r)];
        const Meeting& there = table[static_cast<size_t>(r)];
        peer.socket = reach(there, "rank " + std::to_string(r),
                            "; may the machines reach each other's ports?", seconds);
        const Hello hello = hello_of(rank_, size(), 0, there.run);
        send_all(peer.socket, &hello, sizeof hello, seconds);
    }
    const Timer timer;
    for (int missing = size() - 1 - rank_; missing > 0;) {
        Socket socket = accept_within(listener, seconds - timer.seconds());
        Hello hello;
        if (socket.open() && receive_hello(socket, &hello) && hello.rank > rank_ &&
            hello.rank < size()) {
            peers_[static_cast<size_t>(hello.rank)].socket = std::move(socket);
            --missing;
        } else if (timer.seconds() > seconds) {
            throw Error("rank " + std::to_string(rank_) + ": " + std::to_string(missing) +
                        " ranks above it did not come within " +
                        std::to_string(static_cast<int>(seconds)) +
                        " s; may the machines reach each other's ports?");
        }
    }
}

}  // namespace lmo
