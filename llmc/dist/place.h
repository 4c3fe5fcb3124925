// Which rank this process is, and where the ranks of its run meet: from what the launcher put into
// the environment. Known launchers: train_gpt itself (local_ranks.h), torchrun, mpirun (Open MPI,
// MPICH and Intel MPI) and srun.
#pragma once

#include <functional>
#include <string>

namespace lmo {

// Where rank 0 listens at the start.
struct Meeting {
    std::string local;  // name of a Unix socket, where all ranks are on one machine; else empty
    std::string host;
    int port = 0;
    // What the launcher calls this run on all its machines, so that a rank of another one is told
    // apart; empty where it does not say.
    std::string run = {};
};
std::string to_string(const Meeting& meeting);

struct Place {
    int rank = 0, size = 1;
    std::string launcher;  // for messages; empty: none
    Meeting meeting;       // where size is above 1
};

// The value of an environment variable, or nullptr.
using Environment = std::function<const char*(const char*)>;

// Throws UsageError where the variables contradict each other or leave open where to meet: a
// program that was meant as one rank of several must never train alone.
Place find_place(const Environment& environment);
Place find_place();  // of this process

// The first machine of a list of Slurm's: "a[007-009,12],b" gives "a007".
std::string first_host(const std::string& list);

}  // namespace lmo
