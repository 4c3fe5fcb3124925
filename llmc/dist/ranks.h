// The processes that train one model together, each on its share of every batch. One rank is the
// ordinary case: nothing is connected and every collective is a no-op.
//
// Every rank makes the same calls in the same order; `what` names them in messages. Sums are taken
// in the order of the ranks, so that equal inputs give equal bits, the same on all ranks. A rank
// that dies, stalls or calls something else ends all ranks: RanksFailed names it and the
// collective.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "llmc/core/timer.h"
#include "llmc/dist/mesh.h"
#include "llmc/dist/ownership.h"
#include "llmc/dist/place.h"

namespace lmo {

class Ranks {
  public:
    Ranks();  // one rank
    // Meets the others. Throws Error saying who did not come, or which port is in use.
    explicit Ranks(const Place& place);
    ~Ranks();
    Ranks(const Ranks&) = delete;
    Ranks& operator=(const Ranks&) = delete;

    int rank() const { return rank_; }
    int size() const { return size_; }
    bool first() const { return rank_ == 0; }  // the one that writes files and speaks
    void set_timeout(double seconds);
    int64_t bytes_sent() const;  // by this rank so far

    // values[i] = sum over ranks of values[i]. Takes scratch memory of some MiB.
    void sum(float* values, int64_t count, const char* what);
    void sum(double* values, int64_t count, const char* what);

    // The same sums, of each piece on its owner alone; on the others it stays as it was.
    void sum_to_owners(float* values, const std::vector<Piece>& pieces, const char* what);
    void sum_to_owners(double* values, const std::vector<Piece>& pieces, const char* what);
    // Every rank gets each piece from its owner.
    void share(float* values, const std::vector<Piece>& pieces, const char* what);
    void share(double* values, const std::vector<Piece>& pieces, const char* what);
    void share(uint16_t* values, const std::vector<Piece>& pieces, const char* what);
    // out[r] goes to rank r, whose bytes for this one fill in[r]; sizes are known on both sides.
    // What a rank has for itself stays where it is.
    void exchange(const std::vector<std::vector<std::byte>>& out,
                  std::vector<std::vector<std::byte>>& in, const char* what);
    // Rank 0 gets `bytes` from `owner`.
    void hand_to_first(int owner, void* data, size_t bytes, const char* what);

    // What every rank gives, by rank.
    template <typename T>
    std::vector<T> gather(const T& mine, const char* what) {
        static_assert(std::is_trivially_copyable_v<T>);
        std::vector<T> all(static_cast<size_t>(size_));
        gather_bytes(&mine, sizeof(T), all.data(), what);
        return all;
    }
    bool any(bool mine, const char* what);

    // Waits for what all ranks do together without these collectives, until ended() says so;
    // the others are watched, as in a collective.
    template <typename Ended>
    void wait_together(const char* what, Ended ended) {
        Watch watch(*this, what);
        while (!ended()) watch.look();
    }
    void barrier(const char* what) { any(false, what); }
    // Of rank 0, on all ranks.
    void broadcast(void* data, size_t bytes, const char* what);
    std::string broadcast(const std::string& text, const char* what);

    // Rank 0 runs body(), however long it takes; the others wait for it, and notice if rank 0 is
    // stopped or killed.
    template <typename Body>
    void on_first(const char* what, Body body) {
        if (first()) {
            const Alive alive(*this);
            body();
        }
        broadcast(nullptr, 0, what);
    }

    // Throws on every rank where the digests differ: "rank 2: TEXT".
    void require_equal(uint64_t digest, const char* what, const std::string& text);

    // This rank ends by an error: the others are told. Returns whether this rank is to show
    // `text`, which then says whose error it is: of several ranks one speaks.
    bool fails(const Error& error, std::string& text);

  private:
    // Says every second that this rank lives while it lives.
    class Alive {
      public:
        explicit Alive(Ranks& ranks);
        ~Alive();

      private:
        struct Thread;
        std::unique_ptr<Thread> thread_;
    };

    // Looks after the other ranks now and then, more seldom the longer it takes.
    class Watch {
      public:
        Watch(Ranks& ranks, const char* what);
        void look();

      private:
        Ranks& ranks_;
        const char* what_;
        Timer since_start_, since_look_;
        int64_t calls_ = 0;
    };

    template <typename T>
    void sum_typed(T* values, int64_t count, const char* what);
    template <typename T>
    void sum_to_owners_typed(T* values, const std::vector<Piece>& pieces, const char* what);
    template <typename T>
    void share_typed(T* values, const std::vector<Piece>& pieces, const char* what);
    void gather_bytes(const void* mine, size_t bytes, void* all, const char* what);

    int rank_ = 0, size_ = 1;
    std::unique_ptr<Mesh> mesh_;  // where there are several
};

}  // namespace lmo
