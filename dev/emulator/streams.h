// Inside the emulator: streams, events and captures, in C++'s terms; cudart_streams.cpp gives them
// the names of the CUDA runtime.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <vector>

#include "dev/emulator/runtime.h"

namespace emulator {

using Work = std::function<void()>;

struct Event {
    uint64_t recorded = 0;  // how often record was issued,
    uint64_t reached = 0;   // and how often it has run
    std::chrono::steady_clock::time_point time{};
};

struct Operation {
    Work run;
    std::shared_ptr<Event> awaited{};  // it waits until this event has been reached `count` times
    uint64_t count = 0;
    uint64_t number = 0;  // in the order of issue, over all streams
};

// What a capture recorded; also the graph and its executable form, whose launch repeats it. Events
// of other streams are looked up at each launch, as those of external event nodes.
struct Recorded {
    Work run;
    std::shared_ptr<Event> reached{}, awaited{};
};
struct Recording {
    std::vector<Recorded> work;
};

struct Stream {
    bool blocking = true;  // waits for the legacy stream, and that one for it
    std::deque<Operation> queue;
    std::unique_ptr<Recording> capture;
    bool capture_broken = false;
    bool destroyed = false;  // but not all of its work has run
};

// An event's handle points to a shared pointer: work that uses it may outlive the handle.
inline std::shared_ptr<Event>& find_event(cudaEvent_t event) {
    return *reinterpret_cast<std::shared_ptr<Event>*>(event);
}
// The default stream for null. Throws Error for a stream that was destroyed or never made.
Stream& find_stream(cudaStream_t stream);
bool any_capture();     // some stream is being captured now
void break_captures();  // something was called that no capture allows

cudaStream_t make_stream(bool blocking);
void destroy_stream(cudaStream_t stream);  // its work still runs

void issue(Stream& stream, Operation operation);
void issue_record(Stream& stream, const std::shared_ptr<Event>& event);
void issue_wait(Stream& stream, const std::shared_ptr<Event>& event);
// One operation runs, of the stream whose turn it is: time passes for who asks again and again.
void let_time_pass();
void wait_for(Stream& stream);
void wait_for(const Event& event);
void wait_for_all();

}  // namespace emulator
