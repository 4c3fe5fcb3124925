// Stream sockets between ranks: TCP (IPv4), or a Unix socket by an abstract name on one machine.
#pragma once

#include <string>
#include <utility>

#include "llmc/dist/place.h"

namespace lmo {

// Owns a file descriptor.
class Socket {
  public:
    Socket() = default;
    explicit Socket(int file) : file_(file) {}
    Socket(Socket&& other) noexcept : file_(std::exchange(other.file_, -1)) {}
    Socket& operator=(Socket&& other) noexcept {
        std::swap(file_, other.file_);
        return *this;
    }
    ~Socket();

    int file() const { return file_; }
    bool open() const { return file_ >= 0; }
    void close() { Socket().swap(*this); }
    void swap(Socket& other) noexcept { std::swap(file_, other.file_); }

  private:
    int file_ = -1;
};

// Listens there; on all interfaces of the machine, or with `loopback` on that one alone. Port 0:
// any free one. Throws Error naming the port that is in use.
Socket listen_at(const Meeting& meeting, bool loopback = false);
int port_of(const Socket& socket);
std::string peer_host(const Socket& socket);  // numeric; of a Unix socket "127.0.0.1"

// One attempt to connect, of so many seconds; not open: `reason` says why not.
Socket try_connect(const Meeting& meeting, double seconds, std::string* reason);
// The next one who connects, of the same user where that can be told; not open: nobody until then.
Socket accept_within(const Socket& listener, double seconds);

// All bytes, or false: closed, failed, or not there within `seconds`.
bool send_all(const Socket& socket, const void* data, size_t bytes, double seconds);
bool receive_all(const Socket& socket, void* data, size_t bytes, double seconds);

}  // namespace lmo
