// Streams as queues of work. Eager settings run everything at once; the others keep it until
// somebody waits, and then take turns in an order that shows missing waits between streams.
#include "dev/emulator/streams.h"

#include <algorithm>

#include "dev/emulator/scheduler.h"

namespace emulator {

namespace {

struct Device {
    Stream legacy;
    std::vector<std::unique_ptr<Stream>> streams;
    uint64_t issued = 0;
    uint64_t random_state = 0;

    // The legacy stream first, the others in the order of their creation.
    Stream& stream(size_t i) { return i == 0 ? legacy : *streams[i - 1]; }
    size_t count() const { return streams.size() + 1; }
};

// Never destroyed: other objects may wait for streams while the process ends.
Device& device() {
    static auto* the_device = new Device;
    return *the_device;
}

uint32_t random_turn() {
    uint64_t& x = device().random_state;
    if (x == 0) x = settings().seed * 0x9E3779B97F4A7C15ull | 1;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return static_cast<uint32_t>(x >> 16);
}

bool issued_before(const Stream& stream, uint64_t number) {
    return !stream.queue.empty() && stream.queue.front().number < number;
}

bool can_run(const Stream& stream) {
    Device& d = device();
    if (stream.queue.empty()) return false;
    const Operation& next = stream.queue.front();
    if (next.awaited && next.awaited->reached < next.count) return false;
    if (&stream != &d.legacy) return !stream.blocking || !issued_before(d.legacy, next.number);
    return std::none_of(d.streams.begin(), d.streams.end(), [&](const auto& other) {
        return other->blocking && issued_before(*other, next.number);
    });
}

// After an error the device's work is lost, as on a real one.
void drop_work() {
    Device& d = device();
    for (size_t i = 0; i < d.count(); ++i) d.stream(i).queue.clear();
}

void run_next(Stream& stream) {
    const Operation next = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (!next.run) return;
    try {
        next.run();
    } catch (...) {
        drop_work();
        throw;
    }
}

// Runs one operation of the stream whose turn it is.
void take_turn() {
    Device& d = device();
    const size_t count = d.count();
    size_t first = 0;
    if (settings().streams == StreamOrder::random) first = random_turn() % count;
    for (size_t i = 0; i < count; ++i) {
        const bool backwards = settings().streams == StreamOrder::last;
        Stream& stream = d.stream(backwards ? count - 1 - i : (first + i) % count);
        if (can_run(stream)) return run_next(stream);
    }
    drop_work();
    throw Error("emulator: all streams wait for events that nobody records any more");
}

}  // namespace

Stream& find_stream(cudaStream_t stream) {
    Device& d = device();
    if (!stream || stream == cudaStreamLegacy) return d.legacy;
    for (auto& known : d.streams) {
        if (known.get() == reinterpret_cast<Stream*>(stream) && !known->destroyed) return *known;
    }
    throw Error("emulator: a stream that does not exist was used");
}

bool any_capture() {
    Device& d = device();
    return std::any_of(d.streams.begin(), d.streams.end(),
                       [](const auto& stream) { return stream->capture != nullptr; });
}

void break_captures() {
    for (const auto& stream : device().streams) stream->capture_broken = stream->capture != nullptr;
}

cudaStream_t make_stream(bool blocking) {
    Device& d = device();
    d.streams.push_back(std::make_unique<Stream>());
    d.streams.back()->blocking = blocking;
    return reinterpret_cast<cudaStream_t>(d.streams.back().get());
}

void destroy_stream(cudaStream_t stream) {
    find_stream(stream).destroyed = true;
    std::erase_if(device().streams, [](const auto& s) { return s->destroyed && s->queue.empty(); });
}

void issue(Stream& stream, Operation operation) {
    operation.number = ++device().issued;
    stream.queue.push_back(std::move(operation));
    if (settings().streams == StreamOrder::eager) wait_for(stream);
}

void issue_record(Stream& stream, const std::shared_ptr<Event>& event) {
    const uint64_t count = ++event->recorded;
    issue(stream, {[event, count] {
              event->reached = count;
              event->time = std::chrono::steady_clock::now();
          }});
}

void issue_wait(Stream& stream, const std::shared_ptr<Event>& event) {
    issue(stream, {nullptr, event, event->recorded});
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
    report_pending_error();
    Stream& to = find_stream(stream);
    if (to.capture) {
        to.capture->work.push_back({std::move(work)});
        return;
    }
    if (&to == &device().legacy && any_capture()) {
        break_captures();
        throw Error("emulator: work on the default stream while another stream is captured");
    }
    issue(to, {std::move(work)});
}

void let_time_pass() { take_turn(); }
void wait_for(Stream& stream) {
    while (!stream.queue.empty()) take_turn();
}
void wait_for(const Event& event) {
    const uint64_t count = event.recorded;
    while (event.reached < count) take_turn();
}
void wait_for_all() {
    Device& d = device();
    for (size_t i = 0; i < d.count(); ++i) wait_for(d.stream(i));
}

}  // namespace emulator
