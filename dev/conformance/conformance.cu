// Does the hardware do what the emulator says? Runs every wrapper of llmc/cuda/ptx.cuh and
// hopper.cuh on operands from a fixed seed, and writes the results to a file or compares them with
// one. The same sources are compiled for the emulator and for a GPU.
//
//   make build/emulated/plain/conformance build/cuda/conformance
//   build/emulated/plain/conformance --write build/emulated.golden
//   build/cuda/conformance --compare build/emulated.golden       on a GPU: emulator right?
//
// On a GPU of compute capability 9.0 the hardware's results are written once and kept; from then on
// every machine can compare the emulator with the hardware:
//
//   mkdir -p dev/emulator/golden
//   build/cuda/conformance --write dev/emulator/golden/sm_90.golden
//   build/emulated/plain/conformance --compare dev/emulator/golden/sm_90.golden
//
// Other GPUs run the part of ptx.cuh alone. Data movement has to be equal bit for bit; matrix
// products within conformance.h's bound_of_sum, since the order of additions differs.
//
// By hand, from the repository's root, hopper_cases.cu for sm_90a and nothing else:
//   nvcc="nvcc -std=c++20 -O3 -I. -gencode arch=compute_90a,code=sm_90a"
//   $nvcc -gencode arch=compute_80,code=[sm_80,compute_80] -c dev/conformance/conformance.cu
//   $nvcc -gencode arch=compute_80,code=[sm_80,compute_80] -c dev/conformance/ptx_cases.cu
//   $nvcc -c dev/conformance/hopper_cases.cu
//   g++ conformance.o ptx_cases.o hopper_cases.o -o conformance -L/usr/local/cuda/lib64
//       -lcudart_static -ldl -lrt -pthread
//
// The file: "LMOGOLD1", then for each result a 32-bit length and its name, a 64-bit length and its
// bytes; all little-endian.
//
// Both ways, most results are also checked against their definition, computed on the host.
//
// Exit status: 0 equal or written, 1 different or wrong, 2 wrong use or an error, 77 no GPU here.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>

#include "dev/conformance/conformance.h"
#include "llmc/core/error.h"

namespace lmo::conformance {
namespace {

constexpr char kMagic[] = "LMOGOLD1";

void write_file(const std::string& path, const Results& results) {
    std::ofstream file(path, std::ios::binary);
    file.write(kMagic, 8);
    for (const Result& result : results.all()) {
        const auto name_length = static_cast<uint32_t>(result.name.size());
        const auto length = static_cast<uint64_t>(result.bytes.size());
        file.write(reinterpret_cast<const char*>(&name_length), sizeof name_length);
        file.write(result.name.data(), name_length);
        file.write(reinterpret_cast<const char*>(&length), sizeof length);
        file.write(reinterpret_cast<const char*>(result.bytes.data()),
                   static_cast<std::streamsize>(length));
    }
    file.close();
    if (!file) throw Error("cannot write " + path);
    printf("%zu results written to %s\n", results.all().size(), path.c_str());
}

std::map<std::string, std::vector<unsigned char>> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    char magic[8];
    if (!file.read(magic, 8) || memcmp(magic, kMagic, 8) != 0) {
        throw Error(path + " is no file of conformance results");
    }
    std::map<std::string, std::vector<unsigned char>> results;
    uint32_t name_length = 0;
    while (file.read(reinterpret_cast<char*>(&name_length), sizeof name_length)) {
        uint64_t length = 0;
        std::string name(name_length & 0xffff, ' ');
        file.read(name.data(), static_cast<std::streamsize>(name.size()));
        file.read(reinterpret_cast<char*>(&length), sizeof length);
        if (!file || length > 1u << 28) throw Error(path + " is damaged");
        std::vector<unsigned char> bytes(length);
        file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(length));
        if (!file) throw Error(path + " ends early");
        results[name] = std::move(bytes);
    }
    return results;
}

float float_at(const std::vector<unsigned char>& bytes, size_t i) {
    float x;
    memcpy(&x, &bytes[i * sizeof x], sizeof x);
    return x;
}

// How many elements differ too much; prints the first one.
size_t differences(const Result& mine, const std::vector<unsigned char>& golden) {
    if (mine.bytes.size() != golden.size()) {
        printf("%s: %zu bytes, not %zu\n", mine.name.c_str(), mine.bytes.size(), golden.size());
        return 1;
    }
    size_t count = 0;
    const auto report = [&](size_t i, double got, double expected, double bound) {
        if (count++ > 0) return;
        printf("%s: element %zu is %.9g, not %.9g +- %.2g\n", mine.name.c_str(), i, got, expected,
               bound);
    };
    if (mine.bounds.empty()) {
        for (size_t i = 0; i < golden.size(); ++i) {
            if (mine.bytes[i] != golden[i]) report(i, mine.bytes[i], golden[i], 0);
        }
        return count;
    }
    for (size_t i = 0; i < mine.bounds.size(); ++i) {
        const double got = float_at(mine.bytes, i), expected = float_at(golden, i);
        const bool equal = memcmp(&mine.bytes[i * 4], &golden[i * 4], 4) == 0;
        if (!equal && !(std::abs(got - expected) <= mine.bounds[i])) {
            report(i, got, expected, mine.bounds[i]);
        }
    }
    return count;
}

// Largest part of its bound that an element uses.
double largest_share(const Result& mine, const std::vector<unsigned char>& golden) {
    double share = 0;
    for (size_t i = 0; i < mine.bounds.size() && mine.bytes.size() == golden.size(); ++i) {
        const double difference = std::abs(float_at(mine.bytes, i) - float_at(golden, i));
        if (difference > 0) share = std::max(share, difference / mine.bounds[i]);
    }
    return share;
}

int compare(const std::string& path, const Results& results) {
    const auto golden = read_file(path);
    size_t wrong = 0;
    for (const Result& result : results.all()) {
        const auto found = golden.find(result.name);
        if (found == golden.end()) {
            printf("%s: not in %s\n", result.name.c_str(), path.c_str());
            ++wrong;
            continue;
        }
        const size_t count = differences(result, found->second);
        if (count > 0) ++wrong;
        if (result.bounds.empty()) {
            printf("%-40s %s\n", result.name.c_str(), count ? "DIFFERENT" : "equal");
        } else {
            printf("%-40s %s (%.3f of the bound)\n", result.name.c_str(),
                   count ? "DIFFERENT" : "within its bound", largest_share(result, found->second));
        }
    }
    printf("%zu results compared, %zu differ; %s has %zu\n", results.all().size(), wrong,
           path.c_str(), golden.size());
    return wrong > 0 ? 1 : 0;
}

int run(const std::string& option, const std::string& path) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        fprintf(stderr, "no GPU here\n");
        return 77;
    }
    int major = 0, minor = 0;
    cuda::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
                "asking for the compute capability");
    cuda::check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0),
                "asking for the compute capability");
    Results results;
    run_ptx_cases(results);
    if (major == 9)
        run_hopper_cases(results);
    else
        printf("compute capability %d.%d: without the part of hopper.cuh\n", major, minor);
    int wrong = 0;
    for (const Result& result : results.all()) {
        if (!result.wrong) continue;
        ++wrong;
        printf("%s: not what the instruction is defined to do\n", result.name.c_str());
    }
    if (option == "--compare") return std::max(compare(path, results), wrong > 0 ? 1 : 0);
    write_file(path, results);
    return wrong > 0 ? 1 : 0;
}

}  // namespace
}  // namespace lmo::conformance

int main(int argc, char** argv) {
    const std::string option = argc == 3 ? argv[1] : "";
    if (option != "--write" && option != "--compare") {
        fprintf(stderr, "usage: conformance --write FILE | --compare FILE\n");
        return 2;
    }
    try {
        return lmo::conformance::run(option, argv[2]);
    } catch (const std::exception& error) {
        fprintf(stderr, "conformance: %s\n", error.what());
        return 2;
    }
}
