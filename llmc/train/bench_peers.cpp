#include "llmc/train/bench_peers.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "llmc/core/error.h"
#include "llmc/core/text.h"

namespace lmo {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

const char* const kScript = "dev/bench/optimizer_torch.py";

// Of the repository that the program lies in.
std::string find_script() {
    std::error_code failed;
    const fs::path program = fs::read_symlink("/proc/self/exe", failed);
    for (fs::path folder = program.parent_path(); !failed; folder = folder.parent_path()) {
        if (fs::exists(folder / kScript, failed)) return folder / kScript;
        if (folder == folder.parent_path()) break;
    }
    throw Error("--compare needs " + std::string(kScript) + " in a folder above " +
                program.string() + ": run the program from its repository's build folder");
}

std::array<int, 2> make_pipe() {
    std::array<int, 2> ends;
    if (pipe2(ends.data(), O_CLOEXEC) != 0) {
        throw Error("cannot make a pipe: " + std::string(std::strerror(errno)));
    }
    return ends;
}

}  // namespace

TorchPeers::TorchPeers(const std::vector<std::string>& arguments) {
    const char* chosen = std::getenv("PYTHON");
    python_ = chosen && *chosen ? chosen : "python3";
    std::vector<std::string> command{python_, find_script()};
    command.insert(command.end(), arguments.begin(), arguments.end());
    std::vector<char*> words;
    for (std::string& word : command) words.push_back(word.data());
    words.push_back(nullptr);

    const std::array<int, 2> questions = make_pipe(), answers = make_pipe();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, questions[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, answers[1], STDOUT_FILENO);
    const int failure =
        posix_spawnp(&process_, python_.c_str(), &actions, nullptr, words.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(questions[0]);
    close(answers[1]);
    to_ = fdopen(questions[1], "w");
    from_ = fdopen(answers[0], "r");
    try {
        if (failure != 0) {
            process_ = -1;
            throw Error("--compare: cannot start " + python_ + ": " + std::strerror(failure) +
                        "; set PYTHON to an interpreter that has PyTorch");
        }
        setup_ = answer();
    } catch (...) {
        finish();
        throw;
    }
}

TorchPeers::~TorchPeers() { finish(); }

// It ends when it can read no more.
void TorchPeers::finish() {
    if (to_) std::fclose(to_);
    if (from_) std::fclose(from_);
    to_ = from_ = nullptr;
    if (process_ > 0) waitpid(process_, nullptr, 0);
    process_ = -1;
}

std::vector<std::string> TorchPeers::prepare(const ordered_json& blocks,
                                             const std::vector<std::string>& presets) {
    const ordered_json what{{"blocks", blocks}, {"presets", presets}};
    return ask("prepare " + what.dump()).at("left_out").get<std::vector<std::string>>();
}

std::vector<PeerTime> TorchPeers::round() {
    std::vector<PeerTime> times;
    const ordered_json reply = ask("round");
    for (const ordered_json& time : reply.at("times")) {
        times.push_back({time.at("peer"), time.at("preset"), time.at("seconds").get<double>()});
    }
    return times;
}

ordered_json TorchPeers::ask(const std::string& question) {
    std::fprintf(to_, "%s\n", question.c_str());
    std::fflush(to_);  // where it has ended, so has its answer
    return answer();
}

ordered_json TorchPeers::answer() {
    char* line = nullptr;
    size_t room = 0;
    const ssize_t length = getline(&line, &room, from_);
    const std::string text(line ? line : "", length > 0 ? static_cast<size_t>(length) : 0);
    std::free(line);
    ordered_json reply = ordered_json::parse(text, nullptr, false);
    if (!reply.is_object()) {
        throw Error(
            "--compare: " + python_ + " " + kScript +
            (text.empty() ? " ended without an answer" : " answered \"" + printable(text) + "\""));
    }
    if (reply.contains("error")) {
        throw Error("--compare: " + printable(reply["error"].get<std::string>()));
    }
    return reply;
}

}  // namespace lmo
