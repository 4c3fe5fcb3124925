#include "llmc/dist/local_ranks.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "llmc/core/timer.h"

namespace lmo {

namespace {

// A rank that has not ended so long after the first one that failed is stopped or hangs.
constexpr double kGrace = 5.0;

struct Child {
    pid_t process;
    int status = -1;  // that it exited with; 128 + signal; -1: it runs
};

void become_rank(int rank, int count, const std::string& job) {
    // A group of its own: a signal from the terminal comes through the parent, once.
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    ::setenv("LMO_RANK", std::to_string(rank).c_str(), 1);
    ::setenv("LMO_RANKS", std::to_string(count).c_str(), 1);
    ::setenv("LMO_JOB", job.c_str(), 1);
}

void send(const std::vector<Child>& children, int signal) {
    for (const Child& child : children) {
        if (child.status < 0) ::kill(child.process, signal);
    }
}

// Takes in who has ended; whether all have.
bool reap(std::vector<Child>& children, bool* failed) {
    bool all = true;
    for (Child& child : children) {
        int status = 0;
        if (child.status < 0 && ::waitpid(child.process, &status, WNOHANG) == child.process) {
            child.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        if (child.status < 0) all = false;
        if (child.status > 0 && child.status != static_cast<int>(ExitStatus::stopped)) {
            *failed = true;
        }
    }
    return all;
}

ExitStatus result(const std::vector<Child>& children) {
    for (const Child& child : children) {
        if (child.status == 0) continue;
        const bool known = child.status <= static_cast<int>(ExitStatus::stopped);
        return known ? static_cast<ExitStatus>(child.status) : ExitStatus::runtime_error;
    }
    return ExitStatus::finished;
}

// Where no rank was left to say it: one that is killed before they have met is missed by nobody.
void report_killed(const std::vector<Child>& children) {
    size_t killed = children.size();
    for (size_t rank = 0; rank < children.size(); ++rank) {
        const int status = children[rank].status;
        if (status > 128) killed = std::min(killed, rank);
        if (status > 0 && status <= 128) return;  // it has had its say
    }
    if (killed == children.size()) return;
    std::fprintf(stderr, "train_gpt: rank %zu was killed by signal %d; the others are killed too\n",
                 killed, children[killed].status - 128);
}

ExitStatus watch(std::vector<Child>& children, int signals) {
    bool failed = false, gave_up = false;
    Timer since_failure;
    while (!reap(children, &failed)) {
        if (!failed) since_failure.restart();
        if (since_failure.seconds() > kGrace) {
            if (!gave_up) report_killed(children);
            gave_up = true;
            send(children, SIGKILL);
        }
        pollfd file{signals, POLLIN, 0};
        if (::poll(&file, 1, 100) <= 0) continue;
        signalfd_siginfo info;
        if (::read(signals, &info, sizeof info) != sizeof info) continue;
        if (info.ssi_signo != SIGCHLD) send(children, static_cast<int>(info.ssi_signo));
    }
    return result(children);
}

}  // namespace

std::optional<ExitStatus> start_local_ranks(int count) {
    const std::string job = std::to_string(::getpid());
    sigset_t watched, before;
    sigemptyset(&watched);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&watched, signal);
    ::sigprocmask(SIG_BLOCK, &watched, &before);
    std::vector<Child> children;
    for (int rank = 0; rank < count; ++rank) {
        const pid_t process = ::fork();
        if (process == 0) {
            become_rank(rank, count, job);
            ::sigprocmask(SIG_SETMASK, &before, nullptr);
            return {};
        }
        if (process < 0) {
            const std::string reason = std::strerror(errno);
            send(children, SIGKILL);
            throw Error("cannot start rank " + std::to_string(rank) + " of " +
                        std::to_string(count) + ": " + reason);
        }
        children.push_back({process});
    }
    const int signals = ::signalfd(-1, &watched, SFD_CLOEXEC);
    if (signals < 0) {
        send(children, SIGKILL);
        throw Error(std::string("cannot watch the ranks: ") + std::strerror(errno));
    }
    const ExitStatus status = watch(children, signals);
    ::close(signals);
    return status;
}

}  // namespace lmo
