// How the ranks meet: all come to rank 0, each says on which port it listens itself, and gets the
// table of these; then everyone connects to the ranks below it.
#include <algorithm>
#include <cstring>
#include <thread>

#include "llmc/core/timer.h"
#include "llmc/dist/mesh.h"

namespace lmo {

namespace {

constexpr char kMagic[8] = {'l', 'm', 'o', '.', 'c', 'u', '0', '1'};

struct Hello {
    char magic[8];
    int32_t rank, size, port;
};
struct TableEntry {
    char host[64];
    int32_t port;
};

Hello hello_of(int rank, int size, int port) {
    Hello hello{{}, rank, size, port};
    std::memcpy(hello.magic, kMagic, sizeof kMagic);
    return hello;
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
        const bool fits = hello.size == size() && hello.rank > 0 && hello.rank < size();
        if (!fits || peers_[static_cast<size_t>(hello.rank)].socket.open()) {
            throw Error("at " + to_string(meeting) + " came rank " + std::to_string(hello.rank) +
                        " of " + std::to_string(hello.size) + ", " +
                        (fits ? "for the second time" : "not of " + std::to_string(size())) +
                        "; do two runs use the same MASTER_PORT?");
        }
        TableEntry& entry = table[static_cast<size_t>(hello.rank)];
        std::strncpy(entry.host, peer_host(socket).c_str(), sizeof entry.host - 1);
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

// Rank 0 may start later than this one.
Socket Mesh::reach(const Meeting& meeting, const std::string& whom, double seconds) {
    const Timer timer;
    std::string reason;
    for (;;) {
        Socket socket = try_connect(meeting, &reason);
        if (socket.open()) return socket;
        if (timer.seconds() > seconds) {
            throw Error("rank " + std::to_string(rank_) + ": cannot reach " + whom + " at " +
                        to_string(meeting) + " within " +
                        std::to_string(static_cast<int>(seconds)) + " s: " + reason);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

void Mesh::meet_as_other(const Meeting& meeting, double seconds) {
    const Socket listener = listen_at({"", "", 0}, !meeting.local.empty());
    peers_[0].socket = reach(meeting, "rank 0", seconds);
    const Hello hello = hello_of(rank_, size(), port_of(listener));
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
        others[r] = {"", table[r].host, table[r].port};
    }
    connect_others(others, listener, seconds);
    timeout_ = seconds;
}

// Those below this rank are connected to, those above it come.
void Mesh::connect_others(const std::vector<Meeting>& table, const Socket& listener,
                          double seconds) {
    for (int r = 1; r < rank_; ++r) {
        Peer& peer = peers_[static_cast<size_t>(r)];
        peer.socket = reach(table[static_cast<size_t>(r)], "rank " + std::to_string(r), seconds);
        const Hello hello = hello_of(rank_, size(), 0);
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
