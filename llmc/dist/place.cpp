#include "llmc/dist/place.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "llmc/core/error.h"

namespace lmo {

namespace {

constexpr int kDefaultPort = 29500;  // of MASTER_PORT

class Variables {
  public:
    explicit Variables(const Environment& environment) : environment_(environment) {}

    bool has(const char* name) const { return environment_(name) != nullptr; }
    std::string text(const char* name) const {
        const char* value = environment_(name);
        return value == nullptr ? "" : value;
    }
    int number(const char* name, int low, int high) const {
        const std::string value = text(name);
        errno = 0;
        char* end = nullptr;
        const long number = std::strtol(value.c_str(), &end, 10);
        if (value.empty() || *end != '\0' || errno != 0 || number < low || number > high) {
            throw UsageError("environment variable " + std::string(name) + " = \"" + value +
                             "\": expected a whole number from " + std::to_string(low) + " to " +
                             std::to_string(high));
        }
        return static_cast<int>(number);
    }

  private:
    const Environment& environment_;
};

// What a launcher calls rank and size, and whether all ranks are on one machine.
struct Launcher {
    const char *name, *rank, *size;
    bool one_machine;
    std::string job;  // tells runs on one machine apart
    std::string run;  // the same, alike on all machines
};

constexpr int kMostRanks = 1024;

// MASTER_ADDR and MASTER_PORT are torchrun's, and the user's way to say it with any launcher.
Meeting meeting_of(const Variables& variables, const Launcher& launcher) {
    const std::string user = std::to_string(::getuid());
    if (variables.has("MASTER_ADDR")) {
        int port =
            variables.has("MASTER_PORT") ? variables.number("MASTER_PORT", 1, 65534) : kDefaultPort;
        // There the port is torchrun's own: its store listens on it as long as the run lives.
        if (variables.text("TORCHELASTIC_USE_AGENT_STORE") == "True") ++port;
        return {"", variables.text("MASTER_ADDR"), port, launcher.run};
    }
    if (launcher.one_machine) {
        return {"lmo.cu-" + user + "-" + launcher.job, "", 0, launcher.run};
    }
    if (variables.has("SLURM_STEP_NODELIST")) {
        // Steps of a job may run at once, and jobs of following numbers.
        const int64_t job = variables.number("SLURM_JOB_ID", 0, 2147483647);
        const int64_t step = variables.number("SLURM_STEP_ID", 0, 2147483647);
        return {"", first_host(variables.text("SLURM_STEP_NODELIST")),
                static_cast<int>(20000 + (job + 1009 * step) % 12000), launcher.run};
    }
    throw UsageError(std::string(launcher.name) + " started " + variables.text(launcher.size) +
                     " ranks on several machines; set MASTER_ADDR to the address of rank 0's "
                     "machine (and MASTER_PORT, if 29500 is taken) for all of them, for example "
                     "mpirun -x MASTER_ADDR=node0");
}

// The launcher that started this process; size == nullptr: none.
Launcher find_launcher(const Variables& variables) {
    if (variables.has("LMO_RANKS")) {
        return {"train_gpt", "LMO_RANK", "LMO_RANKS", true, variables.text("LMO_JOB"), ""};
    }
    if (variables.has("RANK") && variables.has("WORLD_SIZE")) {
        const std::string run = variables.text("TORCHELASTIC_RUN_ID");
        return {"torchrun", "RANK", "WORLD_SIZE", false, "", run};
    }
    if (variables.has("OMPI_COMM_WORLD_SIZE")) {
        const bool one_machine =
            variables.text("OMPI_COMM_WORLD_LOCAL_SIZE") == variables.text("OMPI_COMM_WORLD_SIZE");
        const std::string job = "ompi-" + variables.text("PMIX_NAMESPACE");
        return {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", one_machine, job, job};
    }
    if (variables.has("PMI_SIZE") && variables.has("PMI_RANK") && !variables.has("SLURM_STEP_ID")) {
        // One process starts all ranks of a machine.
        const bool one_machine = variables.text("MPI_LOCALNRANKS") == variables.text("PMI_SIZE");
        return {"mpirun", "PMI_RANK", "PMI_SIZE", one_machine, "pmi-" + std::to_string(::getppid()),
                ""};
    }
    // Only srun sets the variables of a step: in a batch script's own shell there is one process.
    if (variables.has("SLURM_STEP_NUM_TASKS") && variables.has("SLURM_PROCID")) {
        const std::string job =
            "slurm-" + variables.text("SLURM_JOB_ID") + "." + variables.text("SLURM_STEP_ID");
        return {"srun",
                "SLURM_PROCID",
                "SLURM_STEP_NUM_TASKS",
                variables.text("SLURM_STEP_NUM_NODES") == "1",
                job,
                job};
    }
    if (variables.has("WORLD_SIZE") && variables.number("WORLD_SIZE", 1, kMostRanks) > 1) {
        throw UsageError("environment variable WORLD_SIZE = " + variables.text("WORLD_SIZE") +
                         " but RANK is not set, so which rank is this? Set RANK, MASTER_ADDR and "
                         "MASTER_PORT too, or unset WORLD_SIZE to train with one rank");
    }
    return {nullptr, nullptr, nullptr, true, "", ""};
}

}  // namespace

std::string to_string(const Meeting& meeting) {
    if (!meeting.local.empty()) return "this machine";
    return meeting.host + ":" + std::to_string(meeting.port);
}

std::string first_host(const std::string& list) {
    const size_t end = list.find_first_of(",[");
    if (end == std::string::npos || list[end] == ',') return list.substr(0, end);
    // a[007-009]: the first number, with its zeros
    return list.substr(0, end) + list.substr(end + 1, list.find_first_of(",-]", end) - end - 1);
}

Place find_place(const Environment& environment) {
    const Variables variables(environment);
    const Launcher launcher = find_launcher(variables);
    if (launcher.name == nullptr) return {};
    Place place;
    place.launcher = launcher.name;
    place.size = variables.number(launcher.size, 1, kMostRanks);
    place.rank = variables.number(launcher.rank, 0, place.size - 1);
    if (place.size > 1) place.meeting = meeting_of(variables, launcher);
    return place;
}

Place find_place() {
    return find_place([](const char* name) { return std::getenv(name); });
}

}  // namespace lmo
