#include "llmc/dist/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "llmc/core/error.h"
#include "llmc/core/timer.h"

namespace lmo {

namespace {

struct AnyAddress {
    sockaddr_storage storage{};
    socklen_t length = 0;
    sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

// An abstract name (first byte 0) leaves no file behind.
AnyAddress local_address(const std::string& name) {
    AnyAddress address;
    auto* local = reinterpret_cast<sockaddr_un*>(&address.storage);
    local->sun_family = AF_UNIX;
    const size_t length = std::min(name.size(), sizeof local->sun_path - 1);
    std::memcpy(local->sun_path + 1, name.data(), length);
    address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
    return address;
}

AnyAddress internet_address(in_addr host, int port) {
    AnyAddress address;
    auto* internet = reinterpret_cast<sockaddr_in*>(&address.storage);
    internet->sin_family = AF_INET;
    internet->sin_addr = host;
    internet->sin_port = htons(static_cast<uint16_t>(port));
    address.length = sizeof *internet;
    return address;
}

bool resolve(const std::string& host, int port, AnyAddress* address, std::string* reason) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    const int error = ::getaddrinfo(host.c_str(), nullptr, &hints, &found);
    if (error != 0) {
        *reason = ::gai_strerror(error);
        return false;
    }
    *address = internet_address(reinterpret_cast<sockaddr_in*>(found->ai_addr)->sin_addr, port);
    ::freeaddrinfo(found);
    return true;
}

Socket new_socket(int family) {
    Socket socket(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket.open()) throw Error(std::string("cannot open a socket: ") + std::strerror(errno));
    return socket;
}

// Collectives wait for small messages: none is held back to be sent with a later one.
void send_at_once(const Socket& socket) {
    const int yes = 1;
    ::setsockopt(socket.file(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);  // no-op for Unix
}

bool wait_for(const Socket& socket, short events, double seconds) {
    pollfd poll{socket.file(), events, 0};
    const int milliseconds = std::max(0, static_cast<int>(seconds * 1e3));
    return ::poll(&poll, 1, milliseconds) > 0;
}

bool may_try_again() { return errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK; }

}  // namespace

Socket::~Socket() {
    if (file_ >= 0) ::close(file_);
}

Socket listen_at(const Meeting& meeting, bool loopback) {
    AnyAddress address;
    if (meeting.local.empty()) {
        address = internet_address({htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY)}, meeting.port);
    } else {
        address = local_address(meeting.local);
    }
    Socket socket = new_socket(address.storage.ss_family);
    const int yes = 1;
    ::setsockopt(socket.file(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (::bind(socket.file(), address.get(), address.length) != 0) {
        const std::string where = meeting.local.empty() ? "port " + std::to_string(meeting.port)
                                                        : "the socket \"" + meeting.local + "\"";
        const bool in_use = errno == EADDRINUSE;
        throw Error("rank 0 cannot listen on " + where + ": " + std::strerror(errno) +
                    (in_use ? "; another program uses it: set MASTER_ADDR, and MASTER_PORT to a "
                              "free port, for all ranks"
                            : ""));
    }
    if (::listen(socket.file(), SOMAXCONN) != 0) {
        throw Error(std::string("cannot listen for the other ranks: ") + std::strerror(errno));
    }
    return socket;
}

int port_of(const Socket& socket) {
    AnyAddress address;
    address.length = sizeof address.storage;
    ::getsockname(socket.file(), address.get(), &address.length);
    return ntohs(reinterpret_cast<sockaddr_in*>(&address.storage)->sin_port);
}

std::string peer_host(const Socket& socket) {
    AnyAddress address;
    address.length = sizeof address.storage;
    ::getpeername(socket.file(), address.get(), &address.length);
    if (address.storage.ss_family != AF_INET) return "127.0.0.1";
    char text[INET_ADDRSTRLEN] = "";
    ::inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(&address.storage)->sin_addr, text,
                sizeof text);
    return text;
}

// Where packets are lost on the way, the system itself would wait for minutes.
Socket try_connect(const Meeting& meeting, double seconds, std::string* reason) {
    AnyAddress address;
    if (!meeting.local.empty()) {
        address = local_address(meeting.local);
    } else if (!resolve(meeting.host, meeting.port, &address, reason)) {
        return {};
    }
    Socket socket = new_socket(address.storage.ss_family);
    ::fcntl(socket.file(), F_SETFL, O_NONBLOCK);
    int error = 0;
    if (::connect(socket.file(), address.get(), address.length) != 0) {
        error = errno;
        if (error == EINPROGRESS) {
            socklen_t length = sizeof error;
            error = ETIMEDOUT;
            if (wait_for(socket, POLLOUT, seconds)) {
                ::getsockopt(socket.file(), SOL_SOCKET, SO_ERROR, &error, &length);
            }
        }
    }
    if (error != 0) {
        *reason = std::strerror(error);
        return {};
    }
    ::fcntl(socket.file(), F_SETFL, 0);
    send_at_once(socket);
    return socket;
}

Socket accept_within(const Socket& listener, double seconds) {
    if (!wait_for(listener, POLLIN, seconds)) return {};
    Socket socket(::accept4(listener.file(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket.open()) return {};
    ucred other{};
    socklen_t length = sizeof other;
    const bool local = ::getsockopt(socket.file(), SOL_SOCKET, SO_PEERCRED, &other, &length) == 0 &&
                       other.pid != 0;
    if (local && other.uid != ::getuid()) return {};
    send_at_once(socket);
    return socket;
}

bool send_all(const Socket& socket, const void* data, size_t bytes, double seconds) {
    const Timer timer;
    for (const char* next = static_cast<const char*>(data); bytes > 0;) {
        const ssize_t sent = ::send(socket.file(), next, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && !may_try_again()) return false;
        if (sent < 0 && !wait_for(socket, POLLOUT, seconds - timer.seconds())) {
            if (timer.seconds() >= seconds) return false;
        }
        if (sent <= 0) continue;
        next += sent;
        bytes -= static_cast<size_t>(sent);
    }
    return true;
}

bool receive_all(const Socket& socket, void* data, size_t bytes, double seconds) {
    const Timer timer;
    for (char* next = static_cast<char*>(data); bytes > 0;) {
        const ssize_t got = ::recv(socket.file(), next, bytes, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && !may_try_again())) return false;
        if (got < 0 && !wait_for(socket, POLLIN, seconds - timer.seconds())) {
            if (timer.seconds() >= seconds) return false;
        }
        if (got <= 0) continue;
        next += got;
        bytes -= static_cast<size_t>(got);
    }
    return true;
}

}  // namespace lmo
