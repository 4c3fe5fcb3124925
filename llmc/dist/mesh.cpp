// The exchange of frames. How ranks meet is in meeting.cpp.
#include "llmc/dist/mesh.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "llmc/core/timer.h"

namespace lmo {

namespace {

constexpr size_t kLongestText = 1 << 16;
// For what a rank sends before it ends: the others are reading.
constexpr double kLastWords = 1.0;

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK; }

std::string seconds_text(double seconds) {
    char text[32];
    std::snprintf(text, sizeof text, "%g s", seconds);
    return text;
}

std::string ranks_text(const std::vector<int>& ranks) {
    std::string text = ranks.size() == 1 ? "rank " : "ranks ";
    for (size_t i = 0; i < ranks.size(); ++i) {
        text += (i > 0 ? ", " : "") + std::to_string(ranks[i]);
    }
    return text;
}

}  // namespace

void Mesh::exchange(const char* what, std::span<const Outgoing> out, std::span<const Incoming> in) {
    start(what, out, in);
    while (wait()) {
        for (Peer& peer : peers_) {
            if (peer.sending && !send_some(peer)) lost(peer);
            if (!peer.receiving) continue;
            const Read read = receive_some(peer, false);
            if (read == Read::failure) adopt(peer);
            if (read == Read::closed) lost(peer);
        }
        require_in_time();
    }
}

void Mesh::start(const char* what, std::span<const Outgoing> out, std::span<const Incoming> in) {
    ++serial_;
    what_ = what;
    const Clock::time_point now = Clock::now();
    for (const Outgoing& each : out) {
        Peer& peer = peers_[static_cast<size_t>(each.rank)];
        peer.out = {};
        peer.out.serial = serial_;
        peer.out.bytes = each.bytes;
        std::strncpy(peer.out.what, what, sizeof peer.out.what - 1);
        peer.out_data = static_cast<const char*>(each.data);
        peer.out_done = 0;
        peer.sending = true;
        peer.heard = now;
    }
    for (const Incoming& each : in) {
        Peer& peer = peers_[static_cast<size_t>(each.rank)];
        peer.in_data = static_cast<char*>(each.data);
        peer.in_bytes = each.bytes;
        peer.receiving = true;
        peer.heard = now;
    }
}

// Until something can be done; false: all is done.
bool Mesh::wait() {
    std::vector<pollfd> files;
    for (const Peer& peer : peers_) {
        const int events = (peer.sending ? POLLOUT : 0) | (peer.receiving ? POLLIN : 0);
        if (events) files.push_back({peer.socket.file(), static_cast<short>(events), 0});
    }
    if (files.empty()) return false;
    ::poll(files.data(), files.size(), 100);  // then the clock is looked at
    return true;
}

// False: the connection is gone.
bool Mesh::send_some(Peer& peer) {
    const size_t all = sizeof(Header) + peer.out.bytes;
    while (peer.out_done < all) {
        const bool header = peer.out_done < sizeof(Header);
        const size_t done = header ? peer.out_done : peer.out_done - sizeof(Header);
        const char* data = header ? reinterpret_cast<const char*>(&peer.out) : peer.out_data;
        const size_t bytes = (header ? sizeof(Header) : peer.out.bytes) - done;
        const ssize_t sent = ::send(peer.socket.file(), data + done, bytes,
                                    MSG_DONTWAIT | MSG_NOSIGNAL | (header ? MSG_MORE : 0));
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return would_block();
        peer.out_done += static_cast<size_t>(sent);
        bytes_sent_ += sent;
        peer.heard = Clock::now();
    }
    peer.sending = false;
    return true;
}

// Reads until a frame is complete or nothing is there. `draining`: the data is thrown away.
Mesh::Read Mesh::receive_some(Peer& peer, bool draining) {
    char thrown_away[4096];
    for (;;) {
        const bool header = peer.in_done < sizeof(Header);
        const bool failure = !header && peer.in.kind == Kind::failure;
        const size_t done = header ? peer.in_done : peer.in_done - sizeof(Header);
        size_t left = (header ? sizeof(Header) : peer.in.bytes) - done;
        if (left == 0) {
            peer.in_done = 0;
            if (failure) return Read::failure;
            if (draining) continue;
            peer.receiving = false;
            return Read::frame;
        }
        char* to = header    ? reinterpret_cast<char*>(&peer.in) + done
                   : failure ? peer.text.data() + done
                             : peer.in_data + done;
        if (!header && !failure && draining) {
            to = thrown_away;
            left = std::min(left, sizeof thrown_away);
        }
        const ssize_t got = ::recv(peer.socket.file(), to, left, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && would_block()) return Read::nothing;
        if (got <= 0) return Read::closed;
        peer.in_done += static_cast<size_t>(got);
        peer.heard = Clock::now();
        if (!header || peer.in_done < sizeof(Header)) continue;
        if (peer.in.kind == Kind::alive) peer.in_done = 0;
        if (peer.in.kind == Kind::failure) {
            peer.in.bytes = std::min<uint64_t>(peer.in.bytes, kLongestText);
            peer.text.resize(peer.in.bytes);
        }
        if (peer.in.kind == Kind::data && !draining) require_expected(peer);
    }
}

void Mesh::require_expected(const Peer& peer) {
    if (peer.in.serial == serial_ && peer.in.bytes == peer.in_bytes) return;
    const std::string other(peer.in.what, strnlen(peer.in.what, sizeof peer.in.what));
    const auto place = [](const std::string& what, uint64_t serial, uint64_t bytes) {
        return "'" + what + "' (collective " + std::to_string(serial) + ", " +
               std::to_string(bytes) + " bytes)";
    };
    fail("rank " + std::to_string(index(peer)) + " is at " +
             place(other, peer.in.serial, peer.in.bytes) + ", rank " + std::to_string(rank_) +
             " at " + place(what_, serial_, peer.in_bytes) +
             "; do all ranks run the same program with the same configuration?",
         {index(peer)});
}

void Mesh::require_in_time() {
    std::vector<int> late;
    const Clock::time_point now = Clock::now();
    for (const Peer& peer : peers_) {
        const bool waits = peer.sending || peer.receiving;
        if (waits && std::chrono::duration<double>(now - peer.heard).count() > timeout_) {
            late.push_back(index(peer));
        }
    }
    if (late.empty()) return;
    fail(ranks_text(late) + " did not come to '" + what_ + "' within " + seconds_text(timeout_) +
             " (run.rank_timeout), so all ranks stop; a stopped or overloaded machine, or a lost "
             "connection?",
         late);
}

void Mesh::send_alive() {
    Header header;
    header.kind = Kind::alive;
    for (const Peer& peer : peers_) {
        if (peer.socket.open()) send_all(peer.socket, &header, sizeof header, kLastWords);
    }
}

void Mesh::tell_failure(const std::string& text, ExitStatus status, int printer) {
    Header header;
    header.kind = Kind::failure;
    header.status = static_cast<int32_t>(status);
    header.printer = printer;
    header.bytes = std::min(text.size(), kLongestText);
    const Timer timer;
    for (Peer& peer : peers_) {
        if (!peer.socket.open()) continue;
        // What has begun must end first. A rank that takes nothing loses the message.
        while (peer.sending && peer.out_done > 0 && timer.seconds() < kLastWords) {
            if (!send_some(peer)) break;
            pollfd file{peer.socket.file(), POLLOUT, 0};
            if (peer.sending) ::poll(&file, 1, 10);
        }
        if (peer.sending && peer.out_done > 0) continue;
        const double seconds = std::max(0.1, kLastWords - timer.seconds());
        if (send_all(peer.socket, &header, sizeof header, seconds)) {
            send_all(peer.socket, text.data(), header.bytes, seconds);
        }
    }
}

// The lowest rank that is not to blame speaks.
void Mesh::fail(const std::string& text, const std::vector<int>& culprits) {
    int printer = 0;
    while (std::find(culprits.begin(), culprits.end(), printer) != culprits.end()) ++printer;
    tell_failure(text, ExitStatus::runtime_error, printer);
    throw RanksFailed(text, ExitStatus::runtime_error, printer);
}

void Mesh::adopt(const Peer& peer) {
    throw RanksFailed(peer.text, static_cast<ExitStatus>(peer.in.status), peer.in.printer);
}

// A connection has ended. Perhaps a rank has said why; the ranks that it told end one after
// another.
void Mesh::lost(const Peer& peer) {
    const Timer timer;
    do {
        for (Peer& other : peers_) {
            if (other.socket.open() && receive_some(other, true) == Read::failure) adopt(other);
        }
        ::poll(nullptr, 0, 10);
    } while (timer.seconds() < 0.3);
    fail("rank " + std::to_string(index(peer)) + " ended without a word at '" + what_ +
             "', so all ranks stop; was it killed, for lack of memory perhaps?",
         {index(peer)});
}

void Mesh::begin_watch(const char* what) {
    what_ = what;
    said_alive_ = Clock::now();
    for (Peer& peer : peers_) peer.heard = said_alive_;
}

void Mesh::watch(double patience) {
    const auto since = [](Clock::time_point time) {
        return std::chrono::duration<double>(Clock::now() - time).count();
    };
    if (since(said_alive_) >= alive_interval()) {
        said_alive_ = Clock::now();
        send_alive();
    }
    std::vector<int> silent;
    for (Peer& peer : peers_) {
        if (!peer.socket.open()) continue;
        look_at(peer);
        if (since(peer.heard) > patience) silent.push_back(index(peer));
    }
    if (silent.empty()) return;
    fail(ranks_text(silent) + " gave no sign of life in '" + what_ + "' for " +
             seconds_text(patience) +
             ", so all ranks stop; a stopped or overloaded machine, or a lost connection?",
         silent);
}

// Data belongs to the next exchange and stays where it is; who has sent it waits there.
void Mesh::look_at(Peer& peer) {
    pollfd file{peer.socket.file(), POLLIN | POLLRDHUP, 0};
    if (::poll(&file, 1, 0) <= 0) return;
    if (file.revents & (POLLRDHUP | POLLHUP | POLLERR)) lost(peer);
    Header header;
    const auto peek = [&] {
        const int flags = MSG_PEEK | MSG_DONTWAIT;
        return ::recv(peer.socket.file(), &header, sizeof header, flags) == sizeof header;
    };
    while (peek()) {
        peer.heard = Clock::now();
        if (header.kind == Kind::data) return;
        if (header.kind == Kind::failure) lost(peer);
        receive_all(peer.socket, &header, sizeof header, 0.0);
    }
}

bool Mesh::wait_for_end(int rank, double seconds) {
    Peer& peer = peers_[static_cast<size_t>(rank)];
    const Timer timer;
    while (timer.seconds() < seconds) {
        if (!peer.socket.open() || receive_some(peer, true) == Read::closed) return true;
        ::poll(nullptr, 0, 10);
    }
    return false;
}

}  // namespace lmo
