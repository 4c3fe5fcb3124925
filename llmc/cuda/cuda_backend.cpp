// The CUDA backend's device, memory, order and description; the operations are in the .cu files.
#include "llmc/cuda/cuda_backend.h"

#include <cassert>
#include <utility>

#include "llmc/core/error.h"
#include "llmc/cuda/check.h"
#include "llmc/cuda/nccl_communicator.h"

namespace lmo::cuda {

namespace {

class CapturedGraph : public Graph {
  public:
    CapturedGraph(cudaGraph_t graph, cudaStream_t stream) : stream_(stream) {
        const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
        cudaGraphDestroy(graph);
        check(status, "making an executable graph");
    }
    ~CapturedGraph() override { cudaGraphExecDestroy(executable_); }
    void launch() override { check(cudaGraphLaunch(executable_, stream_), "launching a graph"); }

  private:
    cudaGraphExec_t executable_ = nullptr;
    cudaStream_t stream_;
};

// Of the devices that this process sees; CUDA_VISIBLE_DEVICES chooses.
int count_devices() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorInsufficientDriver) {  // also what a machine without any driver says
        (void)cudaGetLastError();
        throw Error("no GPU: no NVIDIA driver is loaded here, or it is older than CUDA needs");
    }
    if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
        (void)cudaGetLastError();
        throw Error("no GPU: none is visible to this process");
    }
    check(status, "looking for a GPU");
    return count;
}

// A launcher may show every rank one device, its own: each of them is number 0.
int device_number(const LocalRank& rank) {
    const int count = count_devices();
    if (count == 1) return 0;
    if (rank.count <= count) return rank.number;
    throw UsageError(std::to_string(rank.count) + " ranks on this machine, where " +
                     std::to_string(count) +
                     " GPUs are visible: every rank needs one of its own; start at most " +
                     std::to_string(count) +
                     " here, look at CUDA_VISIBLE_DEVICES, or compute on the "
                     "CPU (--device cpu)");
}

cudaDeviceProp open_device(int number) {
    const std::string name = "GPU " + std::to_string(number);
    check(cudaSetDevice(number), "opening " + name);
    cudaDeviceProp device{};
    check(cudaGetDeviceProperties(&device, number), "reading the properties of " + name);
    if (device.major < 8) {
        throw Error("CUDA: " + std::string(device.name) + " has compute capability " +
                    std::to_string(device.major) + "." + std::to_string(device.minor) +
                    "; 8.0 or newer is needed: use --device cpu");
    }
    return device;
}

}  // namespace

CudaBackend::CudaBackend(const LocalRank& rank)
    : device_(open_device(device_number(rank))), blas_(std::make_unique<Blas>()) {
    check(cudaStreamCreateWithFlags(&stream_.stream, cudaStreamNonBlocking), "making a stream");
    check(cudaStreamCreateWithFlags(&second_.stream, cudaStreamNonBlocking), "making a stream");
}

CudaBackend::~CudaBackend() {
    cudaStreamSynchronize(stream_);
    cudnn_.reset();
    for (cudaEvent_t event : moments_) cudaEventDestroy(event);
    for (cudaEvent_t event : milestones_) cudaEventDestroy(event);
    cudaStreamDestroy(second_);
    cudaStreamDestroy(stream_);
}

std::string CudaBackend::describe() const {
    int runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    return std::string(device_.name) + ", compute capability " + std::to_string(device_.major) +
           "." + std::to_string(device_.minor) + ", " +
           std::to_string(device_.totalGlobalMem >> 30) + " GiB, CUDA " +
           std::to_string(runtime / 1000) + "." + std::to_string(runtime % 1000 / 10) + ", " +
           Blas::version();
}

CudnnAttention& CudaBackend::cudnn() const {
    if (!cudnn_) cudnn_ = open_cudnn_attention(device_, stream_);
    return *cudnn_;
}

std::string CudaBackend::missing_attention_library() const {
    try {
        cudnn();
        return "";
    } catch (const Error& error) {
        return error.what();
    }
}

void* CudaBackend::allocate(size_t bytes) {
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, bytes ? bytes : 1);
    if (status == cudaSuccess) return memory;
    (void)cudaGetLastError();
    if (status != cudaErrorMemoryAllocation) check(status, "allocating memory");
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw Error("out of memory on the GPU: " + std::to_string(bytes >> 20) + " MiB asked for, " +
                std::to_string(free >> 20) + " of " + std::to_string(total >> 20) +
                " MiB are free; use a smaller model or batch.micro_batch");
}

double CudaBackend::free_bytes() const {
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for free memory");
    return static_cast<double>(free);
}

void CudaBackend::release(void* memory) {
    cudaStreamSynchronize(stream_);  // nothing may be using it
    cudaFree(memory);
}

void CudaBackend::copy_in(const Tensor& to, const void* host) {
    staging_.copy(to.data, host, to.bytes(), stream_);
}

void CudaBackend::copy_out(void* host, const Tensor& from) {
    if (from.count() > 0) {
        check(cudaMemcpyAsync(host, from.data, from.bytes(), cudaMemcpyDeviceToHost, stream_),
              "copying from the GPU");
    }
    synchronize();
}

void CudaBackend::copy(const Tensor& to, const Tensor& from) {
    assert(to.count() == from.count());
    if (to.count() == 0 || to.data == from.data) return;
    if (to.dtype != from.dtype) return convert(to, from);
    check(cudaMemcpyAsync(to.data, from.data, to.bytes(), cudaMemcpyDeviceToDevice, stream_),
          "copying on the GPU");
}

void CudaBackend::zero(const Tensor& tensor) {
    if (tensor.count() == 0) return;
    check(cudaMemsetAsync(tensor.data, 0, tensor.bytes(), stream_), "clearing memory");
}

// On a stream of its own the body's operations would not be recorded: they are issued on stream_.
std::unique_ptr<Graph> CudaBackend::capture(std::function<void()> body) {
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
          "starting to record a graph");
    cudaGraph_t graph = nullptr;
    recording_ = true;
    try {
        body();
    } catch (...) {
        recording_ = false;
        cudaStreamEndCapture(stream_, &graph);
        if (graph) cudaGraphDestroy(graph);
        throw;
    }
    recording_ = false;
    check(cudaStreamEndCapture(stream_, &graph), "recording a graph");
    return std::make_unique<CapturedGraph>(graph, stream_);
}

void CudaBackend::synchronize() { check(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

void CudaBackend::aside(const std::function<void()>& body) {
    assert(!recording_);
    std::swap(stream_, second_);
    try {
        body();
    } catch (...) {
        std::swap(stream_, second_);
        throw;
    }
    std::swap(stream_, second_);
}

cudaEvent_t CudaBackend::event_of(size_t milestone) {
    while (milestones_.size() <= milestone) {
        cudaEvent_t event = nullptr;
        check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
        milestones_.push_back(event);
    }
    return milestones_[milestone];
}

// In a graph, events that connect it with the other stream are external: looked up at each launch.
void CudaBackend::reach(size_t milestone) {
    const unsigned flags = recording_ ? cudaEventRecordExternal : cudaEventRecordDefault;
    check(cudaEventRecordWithFlags(event_of(milestone), stream_, flags), "reaching a milestone");
}

void CudaBackend::await(size_t milestone) {
    const unsigned flags = recording_ ? cudaEventWaitExternal : cudaEventWaitDefault;
    check(cudaStreamWaitEvent(stream_, event_of(milestone), flags), "awaiting a milestone");
}

bool CudaBackend::set_dependent_launch(bool on) {
    if (on && !kernels_wait()) return false;
    stream_.dependent = on;
    return true;
}

void CudaBackend::mark(size_t moment) {
    while (moments_.size() <= moment) {
        cudaEvent_t event = nullptr;
        check(cudaEventCreate(&event), "making an event");
        moments_.push_back(event);
    }
    check(cudaEventRecord(moments_[moment], stream_), "marking a moment");
}

double CudaBackend::seconds_between(size_t from, size_t to) {
    check(cudaEventSynchronize(moments_[to]), "waiting for a moment");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, moments_[from], moments_[to]), "reading the time");
    return 1e-3 * static_cast<double>(milliseconds);
}

// As nvidia-smi -L writes it.
std::string CudaBackend::device_id() const {
    std::string text = "GPU-";
    for (const char byte : device_.uuid.bytes) {
        constexpr char kDigits[] = "0123456789abcdef";
        const size_t length = text.size();
        if (length == 12 || length == 17 || length == 22 || length == 27) text += '-';
        text += kDigits[static_cast<unsigned char>(byte) >> 4];
        text += kDigits[static_cast<unsigned char>(byte) & 15];
    }
    return text;
}

std::string CudaBackend::make_communicator_id() { return make_nccl_id(); }

std::unique_ptr<Communicator> CudaBackend::connect(const std::string& id, int rank, int ranks) {
    return std::make_unique<NcclCommunicator>(id, rank, ranks, second_);
}

}  // namespace lmo::cuda

namespace lmo {

std::unique_ptr<Backend> make_cuda_backend(const LocalRank& rank) {
    return std::make_unique<cuda::CudaBackend>(rank);
}

}  // namespace lmo
