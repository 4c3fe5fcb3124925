// A connection from every rank to every other: frames with the name of the collective that they
// belong to, so that a rank that is lost, late or doing something else is noticed and named.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "llmc/core/error.h"
#include "llmc/dist/place.h"
#include "llmc/dist/socket.h"

namespace lmo {

// A run of several ranks came to an end that all ranks know of. Each gets the same text; the rank
// `printer` is to show it.
class RanksFailed : public Error {
  public:
    RanksFailed(const std::string& text, ExitStatus status, int printer)
        : Error(text, status), printer(printer) {}
    const int printer;
};

struct Outgoing {
    int rank;
    const void* data;
    size_t bytes;
};
struct Incoming {
    int rank;
    void* data;
    size_t bytes;
};

class Mesh {
  public:
    // Meets the other ranks, within `seconds`. Throws Error saying who is missing and where.
    Mesh(const Place& place, double seconds);

    int rank() const { return rank_; }
    int size() const { return static_cast<int>(peers_.size()); }
    // How long to wait for a rank of which nothing comes.
    void set_timeout(double seconds) { timeout_ = seconds; }
    double timeout() const { return timeout_; }
    int64_t bytes_sent() const { return bytes_sent_; }

    // Sends and receives all these, at most one of each with one rank; every rank makes the same
    // calls. `what` names the collective. Throws RanksFailed, after telling the others.
    void exchange(const char* what, std::span<const Outgoing> out, std::span<const Incoming> in);

    // Tells every rank that still waits for this one that it is alive. Not during exchange().
    void send_alive();

    // While this rank waits for something that all ranks do without this mesh, between two
    // exchanges: says that it lives and looks whether the others do. Throws RanksFailed as
    // exchange does, where a rank was silent for `patience` seconds too. `what` names what they
    // do; begin_watch first.
    void begin_watch(const char* what);
    void watch(double patience);
    // A rank that is alive has said so several times within this many seconds.
    double surely_heard() const { return 4.0 * alive_interval(); }

    // This rank gives up: the others get `text`, and `printer` shows it.
    void tell_failure(const std::string& text, ExitStatus status, int printer);
    // Waits until a rank has closed its connection; false: it has not within `seconds`.
    bool wait_for_end(int rank, double seconds);

  private:
    using Clock = std::chrono::steady_clock;
    enum class Kind : uint32_t { data = 1, alive, failure };
    struct Header {
        Kind kind = Kind::data;
        int32_t status = 0, printer = 0;  // failure
        uint32_t unused = 0;
        uint64_t serial = 0, bytes = 0;  // bytes: those that follow
        char what[48] = {};
    };
    struct Peer {
        Socket socket;
        Header out;  // then out_data
        const char* out_data = nullptr;
        size_t out_done = 0;  // of both
        bool sending = false;
        Header in;
        char* in_data = nullptr;
        size_t in_bytes = 0, in_done = 0;
        bool receiving = false;
        std::string text;  // of a failure
        Clock::time_point heard;
    };
    enum class Read { nothing, frame, failure, closed };

    void meet_as_first(const Meeting& meeting, double seconds);
    void turn_away(const Socket& stranger, int rank, const std::string& text);
    void meet_as_other(const Meeting& meeting, double seconds);
    void connect_others(const std::vector<Meeting>& table, const Socket& listener, double seconds);
    Socket reach(const Meeting& meeting, const std::string& whom, const std::string& remedy,
                 double seconds);
    void start(const char* what, std::span<const Outgoing> out, std::span<const Incoming> in);
    bool wait();
    bool send_some(Peer& peer);
    Read receive_some(Peer& peer, bool draining);
    void require_expected(const Peer& peer);
    void require_in_time();
    void look_at(Peer& peer);
    double alive_interval() const { return timeout_ < 4.0 ? timeout_ / 4.0 : 1.0; }
    [[noreturn]] void fail(const std::string& text, const std::vector<int>& culprits);
    [[noreturn]] void adopt(const Peer& peer);
    [[noreturn]] void lost(const Peer& peer);
    int index(const Peer& peer) const { return static_cast<int>(&peer - peers_.data()); }

    int rank_;
    double timeout_ = 60.0;
    Clock::time_point said_alive_;
    uint64_t serial_ = 0;    // of the collective that is under way
    const char* what_ = "";  // and its name
    int64_t bytes_sent_ = 0;
    std::vector<Peer> peers_;  // by rank; this one's own is not connected
};

}  // namespace lmo
