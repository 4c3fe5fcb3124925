#include "llmc/dist/ranks.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>

namespace lmo {

namespace {

constexpr double kMeetingSeconds = 60.0;
constexpr int64_t kChunk = 1 << 20;  // elements summed at once

}  // namespace

Ranks::Ranks() = default;

Ranks::Ranks(const Place& place) : rank_(place.rank), size_(place.size) {
    if (size_ > 1) mesh_ = std::make_unique<Mesh>(place, kMeetingSeconds);
}

Ranks::~Ranks() = default;

void Ranks::set_timeout(double seconds) {
    if (mesh_) mesh_->set_timeout(seconds);
}

int64_t Ranks::bytes_sent() const { return mesh_ ? mesh_->bytes_sent() : 0; }

// Each rank owns a part of the values: it gets all ranks' copies of that part, adds them in the
// order of the ranks, and gives the sums to all. So every rank sends and receives 2 (N-1)/N of the
// values.
template <typename T>
void Ranks::sum_typed(T* values, int64_t count, const char* what) {
    if (!mesh_) return;
    std::vector<T> copies;
    std::vector<Outgoing> out;
    std::vector<Incoming> in;
    for (int64_t start = 0; start < count; start += kChunk) {
        T* chunk = values + start;
        const int64_t length = std::min(kChunk, count - start);
        const auto border = [&](int rank) { return length * rank / size_; };
        const auto bytes = [&](int rank) {
            return static_cast<size_t>(border(rank + 1) - border(rank)) * sizeof(T);
        };
        const int64_t mine = border(rank_), own = border(rank_ + 1) - mine;
        copies.resize(static_cast<size_t>(own * size_));
        std::copy_n(chunk + mine, own, copies.begin() + rank_ * own);
        out.clear();
        in.clear();
        for (int r = 0; r < size_; ++r) {
            if (r == rank_) continue;
            out.push_back({r, chunk + border(r), bytes(r)});
            in.push_back({r, copies.data() + r * own, bytes(rank_)});
        }
        mesh_->exchange(what, out, in);
        std::copy_n(copies.begin(), own, chunk + mine);
        for (int r = 1; r < size_; ++r) {
            const T* copy = copies.data() + r * own;
            for (int64_t i = 0; i < own; ++i) chunk[mine + i] += copy[i];
        }
        out.clear();
        in.clear();
        for (int r = 0; r < size_; ++r) {
            if (r == rank_) continue;
            out.push_back({r, chunk + mine, bytes(rank_)});
            in.push_back({r, chunk + border(r), bytes(r)});
        }
        mesh_->exchange(what, out, in);
    }
}

void Ranks::sum(float* values, int64_t count, const char* what) { sum_typed(values, count, what); }
void Ranks::sum(double* values, int64_t count, const char* what) { sum_typed(values, count, what); }

void Ranks::gather_bytes(const void* mine, size_t bytes, void* all, const char* what) {
    char* to = static_cast<char*>(all);
    std::memcpy(to + static_cast<size_t>(rank_) * bytes, mine, bytes);
    if (!mesh_) return;
    std::vector<Outgoing> out;
    std::vector<Incoming> in;
    for (int r = 0; r < size_; ++r) {
        if (r == rank_) continue;
        out.push_back({r, mine, bytes});
        in.push_back({r, to + static_cast<size_t>(r) * bytes, bytes});
    }
    mesh_->exchange(what, out, in);
}

void Ranks::exchange(const std::vector<std::vector<std::byte>>& out,
                     std::vector<std::vector<std::byte>>& in, const char* what) {
    if (!mesh_) return;
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    for (int r = 0; r < size_; ++r) {
        if (r == rank_) continue;
        const size_t at = static_cast<size_t>(r);
        outgoing.push_back({r, out[at].data(), out[at].size()});
        incoming.push_back({r, in[at].data(), in[at].size()});
    }
    mesh_->exchange(what, outgoing, incoming);
}

bool Ranks::any(bool mine, const char* what) {
    const std::vector<char> all = gather(static_cast<char>(mine), what);
    return std::any_of(all.begin(), all.end(), [](char each) { return each != 0; });
}

void Ranks::broadcast(void* data, size_t bytes, const char* what) {
    if (!mesh_) return;
    std::vector<Outgoing> out;
    std::vector<Incoming> in;
    if (first()) {
        for (int r = 1; r < size_; ++r) out.push_back({r, data, bytes});
    } else {
        in.push_back({0, data, bytes});
    }
    mesh_->exchange(what, out, in);
}

std::string Ranks::broadcast(const std::string& text, const char* what) {
    if (!mesh_) return text;
    uint64_t length = text.size();
    broadcast(&length, sizeof length, what);
    std::string result = text;
    result.resize(length);
    broadcast(result.data(), length, what);
    return result;
}

void Ranks::require_equal(uint64_t digest, const char* what, const std::string& text) {
    const std::vector<uint64_t> all = gather(digest, what);
    for (int r = 1; r < size_; ++r) {
        if (all[static_cast<size_t>(r)] == all[0]) continue;
        const std::string message = "rank " + std::to_string(r) + ": " + text;
        throw RanksFailed(message, ExitStatus::runtime_error, 0);  // every rank knows
    }
}

bool Ranks::fails(const Error& error, std::string& text) {
    text = error.what();
    if (!mesh_) return true;
    int printer = 0;
    if (const auto* known = dynamic_cast<const RanksFailed*>(&error)) {
        printer = known->printer;
    } else {
        if (rank_ > 0) text = "rank " + std::to_string(rank_) + ": " + text;
        mesh_->tell_failure(text, error.status(), printer);
    }
    // The one who speaks closes its connections after it has spoken.
    return printer == rank_ || !mesh_->wait_for_end(printer, mesh_->timeout());
}

Ranks::Watch::Watch(Ranks& ranks, const char* what) : ranks_(ranks), what_(what) {
    if (ranks.mesh_) ranks.mesh_->begin_watch(what);
}

void Ranks::Watch::look() {
    constexpr int64_t kEager = 1000;  // calls that cost as little as they can
    constexpr double kLookSeconds = 0.01;
    if (++calls_ < kEager) {
        std::this_thread::yield();
    } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    if (!ranks_.mesh_ || since_look_.seconds() < kLookSeconds) return;
    since_look_.restart();
    Mesh& mesh = *ranks_.mesh_;
    mesh.watch(mesh.timeout());
    // Time is up. Whoever stopped before that is found out by now.
    if (since_start_.seconds() < mesh.timeout() + mesh.surely_heard()) return;
    mesh.watch(mesh.surely_heard());
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%g s", mesh.timeout());
    throw Error(std::string("'") + what_ + "' did not end within " + seconds +
                " (run.rank_timeout), though all ranks live and take part; do the devices reach "
                "each other?");
}

struct Ranks::Alive::Thread {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    std::thread thread;
};

Ranks::Alive::Alive(Ranks& ranks) {
    if (!ranks.mesh_) return;
    thread_ = std::make_unique<Thread>();
    thread_->thread = std::thread([thread = thread_.get(), mesh = ranks.mesh_.get()] {
        std::unique_lock lock(thread->mutex);
        while (!thread->changed.wait_for(lock, std::chrono::seconds(1),
                                         [thread] { return thread->done; })) {
            mesh->send_alive();
        }
    });
}

Ranks::Alive::~Alive() {
    if (!thread_) return;
    {
        const std::lock_guard lock(thread_->mutex);
        thread_->done = true;
    }
    thread_->changed.notify_all();
    thread_->thread.join();
}

}  // namespace lmo
