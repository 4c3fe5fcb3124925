// Attention by cuDNN through its header-only frontend: a graph of one node each for the forward and
// the backward pass, lowered by the frontend, planned by cuDNN's heuristic (never by timing) and
// kept for each shape. The backward pass asks for the deterministic algorithm; on compute
// capability 9.0 that takes a workspace of B H T^2 bf16 numbers.
//
// q, k and v lie side by side in the rows of qkv: they are handed over as strides. The statistics
// that cuDNN keeps for its backward pass are our lse: the log-sum-exp of the scaled scores.
//
// Nothing of cuDNN is linked: the frontend looks its functions up in the library loaded here.
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include "llmc/cuda/cudnn_attention.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <cassert>
#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#include "llmc/core/error.h"

namespace cudnn_frontend {
// Declared there, for the program to set before its first call.
void* cudnn_dlhandle = nullptr;
}  // namespace cudnn_frontend

namespace lmo::cuda {

namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;
using TensorPointer = std::shared_ptr<Tensor_attributes>;

constexpr size_t kOldest = 90600;  // before, masks at some lengths are refused or wrong

std::string version_text(size_t version) {  // 9.6.0 is 90600
    return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
           std::to_string(version % 100);
}

// The frontend's messages have several lines.
std::string one_line(std::string text) {
    while (!text.empty() && text.back() == '\n') text.pop_back();
    std::string result;
    for (const char c : text) result += c == '\n' ? std::string("; ") : std::string(1, c);
    return result;
}

void* load(const std::string& name, const std::string& remedy) {
    void* const opened = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) {
        const char* const why = dlerror();
        throw Error("cannot load " + name + ": " + (why ? why : "no reason given") + "; " + remedy +
                    ", or name its folder in LD_LIBRARY_PATH");
    }
    return opened;
}

void load_libraries() {
    static std::once_flag once;
    std::call_once(once, [] {
        // The frontend calls the shared CUDA runtime, of which it would take the oldest.
        const std::string major = std::to_string(CUDART_VERSION / 1000);
        const std::string runtime = "libcudart.so." + major;
        load(runtime, "install the CUDA " + major + " runtime");
        setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", runtime.c_str(), 0);
        const std::string cudnn_major = std::to_string(CUDNN_MAJOR);
        fe::cudnn_dlhandle = load("libcudnn.so." + cudnn_major, "install cuDNN " + cudnn_major);
    });
}

// ---- shapes -------------------------------------------------------------------------------------

struct AttentionShape {
    int64_t batch, positions, heads, kv_heads, size;

    template <typename Operation>
    explicit AttentionShape(const Operation& op)
        : batch(op.qkv.shape[0]),
          positions(op.qkv.shape[1]),
          heads(op.heads),
          kv_heads(op.kv_heads),
          size(op.qkv.shape[2] / (op.heads + 2 * op.kv_heads)) {
        assert(op.library && op.qkv.dtype == DType::bf16 && op.lse.dtype == DType::f32);
        assert(op.qkv.shape[2] == stride());
    }
    auto operator<=>(const AttentionShape&) const = default;

    int64_t stride() const { return (heads + 2 * kv_heads) * size; }
    // First elements of keys and values in a row of qkv.
    int64_t keys() const { return heads * size; }
    int64_t values() const { return (heads + kv_heads) * size; }

    std::string text() const {
        return "B " + std::to_string(batch) + ", T " + std::to_string(positions) + ", heads " +
               std::to_string(heads) + "/" + std::to_string(kv_heads) + ", head size " +
               std::to_string(size);
    }
};

// What a tensor is called in a graph and in what it is run on.
enum Id : int64_t { kQ = 1, kK, kV, kOut, kLse, kDout, kDq, kDk, kDv };

struct Plan {
    Graph graph;
    size_t workspace = 0;
};

// ---- graphs -------------------------------------------------------------------------------------

// [B, heads, T, D] within rows of `stride` elements.
Tensor_attributes rows(Id id, const AttentionShape& s, int64_t heads, int64_t stride) {
    return Tensor_attributes()
        .set_uid(id)
        .set_dim({s.batch, heads, s.positions, s.size})
        .set_stride({s.positions * stride, s.size, stride, 1})
        .set_data_type(fe::DataType_t::BFLOAT16);
}

Tensor_attributes statistics(const AttentionShape& s) {
    return Tensor_attributes()
        .set_uid(kLse)
        .set_dim({s.batch, s.heads, s.positions, 1})
        .set_stride({s.heads * s.positions, s.positions, 1, 1})
        .set_data_type(fe::DataType_t::FLOAT);
}

void make_output(const TensorPointer& tensor, const Tensor_attributes& like) {
    tensor->set_output(true)
        .set_uid(like.get_uid())
        .set_dim(like.get_dim())
        .set_stride(like.get_stride())
        .set_data_type(like.get_data_type());
}

float scale(const AttentionShape& s) {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.size)));
}

void describe_forward(Graph& graph, const AttentionShape& s) {
    const auto q = graph.tensor(rows(kQ, s, s.heads, s.stride()));
    const auto k = graph.tensor(rows(kK, s, s.kv_heads, s.stride()));
    const auto v = graph.tensor(rows(kV, s, s.kv_heads, s.stride()));
    const auto [out, lse] = graph.sdpa(q, k, v,
                                       fe::graph::SDPA_attributes()
                                           .set_name("attention")
                                           .set_generate_stats(true)
                                           .set_causal_mask(true)
                                           .set_attn_scale(scale(s)));
    make_output(out, rows(kOut, s, s.heads, s.heads * s.size));
    make_output(lse, statistics(s));
}

void describe_backward(Graph& graph, const AttentionShape& s) {
    const auto q = graph.tensor(rows(kQ, s, s.heads, s.stride()));
    const auto k = graph.tensor(rows(kK, s, s.kv_heads, s.stride()));
    const auto v = graph.tensor(rows(kV, s, s.kv_heads, s.stride()));
    const auto out = graph.tensor(rows(kOut, s, s.heads, s.heads * s.size));
    const auto dout = graph.tensor(rows(kDout, s, s.heads, s.heads * s.size));
    const auto lse = graph.tensor(statistics(s));
    const auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, dout, lse,
                                                  fe::graph::SDPA_backward_attributes()
                                                      .set_name("attention_backward")
                                                      .set_causal_mask(true)
                                                      .set_deterministic_algorithm(true)
                                                      .set_attn_scale(scale(s)));
    make_output(dq, rows(kDq, s, s.heads, s.stride()));
    make_output(dk, rows(kDk, s, s.kv_heads, s.stride()));
    make_output(dv, rows(kDv, s, s.kv_heads, s.stride()));
}

// ---- the library --------------------------------------------------------------------------------

class Cudnn : public CudnnAttention {
  public:
    Cudnn(const cudaDeviceProp& device, cudaStream_t stream)
        : capability_(10 * device.major + device.minor) {
        load_libraries();
        const size_t version = fe::detail::get_backend_version();
        version_ = "cuDNN " + version_text(version);
        if (version < kOldest) {
            throw Error(version_ + " is too old: " + version_text(kOldest) + " or newer is needed");
        }
        require(fe::detail::create_handle(&handle_), "opening " + version_);
        require(fe::detail::set_stream(handle_, stream), "setting the stream of " + version_);
    }
    ~Cudnn() override {
        forward_.clear();
        backward_.clear();
        if (handle_ != nullptr) fe::detail::destroy_handle(handle_);
    }
    Cudnn(const Cudnn&) = delete;
    Cudnn& operator=(const Cudnn&) = delete;

    size_t workspace_bytes(const AttentionForward& op) override { return plan(op).workspace; }
    size_t workspace_bytes(const AttentionBackward& op) override { return plan(op).workspace; }

    void forward(const AttentionForward& op) override {
        assert(op.row_max.empty());
        const AttentionShape s(op);
        uint16_t* const qkv = elements(op.qkv);
        run(plan(op), s, op.workspace,
            {{kQ, qkv},
             {kK, qkv + s.keys()},
             {kV, qkv + s.values()},
             {kOut, op.out.data},
             {kLse, op.lse.data}});
    }
    void backward(const AttentionBackward& op) override {
        const AttentionShape s(op);
        uint16_t *const qkv = elements(op.qkv), *const dqkv = elements(op.dqkv);
        run(plan(op), s, op.workspace,
            {{kQ, qkv},
             {kK, qkv + s.keys()},
             {kV, qkv + s.values()},
             {kOut, op.out.data},
             {kLse, op.lse.data},
             {kDout, op.dout.data},
             {kDq, dqkv},
             {kDk, dqkv + s.keys()},
             {kDv, dqkv + s.values()}});
    }

  private:
    using Plans = std::map<AttentionShape, Plan>;
    using Pointers = std::unordered_map<int64_t, void*>;
    using Describe = void (*)(Graph&, const AttentionShape&);

    static uint16_t* elements(const Tensor& tensor) { return static_cast<uint16_t*>(tensor.data); }

    static void require(cudnnStatus_t status, const std::string& doing) {
        if (status == CUDNN_STATUS_SUCCESS) return;
        throw Error(doing + ": " + fe::detail::get_error_string(status));
    }

    Plan& plan(const AttentionForward& op) {
        return find(forward_, AttentionShape(op), describe_forward, "forward");
    }
    Plan& plan(const AttentionBackward& op) {
        return find(backward_, AttentionShape(op), describe_backward, "backward");
    }

    Plan& find(Plans& plans, const AttentionShape& s, Describe describe, const std::string& pass) {
        const auto known = plans.find(s);
        if (known != plans.end()) return known->second;
        try {
            Plan& made = plans[s];
            build(made, s, describe);
            return made;
        } catch (const std::exception& error) {  // of the frontend, too
            const std::string why = one_line(error.what());
            plans.erase(s);
            throw Error(version_ + " refuses attention, " + pass + ", of " + s.text() + ": " + why +
                        "; use model.attention = \"own\"");
        }
    }

    void build(Plan& plan, const AttentionShape& s, Describe describe) {
        Graph& graph = plan.graph;
        graph.set_io_data_type(fe::DataType_t::BFLOAT16)
            .set_intermediate_data_type(fe::DataType_t::FLOAT)
            .set_compute_data_type(fe::DataType_t::FLOAT)
            .set_sm_version(capability_);
        describe(graph, s);
        fe::error_t built = graph.build(handle_, {fe::HeurMode_t::A});
        if (built.is_bad()) throw Error(built.get_message());
        int64_t bytes = 0;
        fe::error_t asked = graph.get_workspace_size(bytes);
        if (asked.is_bad()) throw Error(asked.get_message());
        plan.workspace = static_cast<size_t>(bytes);
    }

    void run(Plan& plan, const AttentionShape& s, const Tensor& workspace, Pointers pointers) {
        assert(workspace.bytes() >= plan.workspace);
        std::string why;
        try {
            fe::error_t done = plan.graph.execute(handle_, pointers, workspace.data);
            if (done.is_good()) return;
            why = done.get_message();
        } catch (const std::exception& error) {
            why = error.what();
        }
        throw Error(version_ + " failed at attention of " + s.text() + ": " + one_line(why));
    }

    const int capability_;
    std::string version_;
    cudnnHandle_t handle_ = nullptr;
    Plans forward_, backward_;
};

}  // namespace

std::unique_ptr<CudnnAttention> open_cudnn_attention(const cudaDeviceProp& device,
                                                     cudaStream_t stream) {
    try {
        return std::make_unique<Cudnn>(device, stream);
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {  // a function that the library lacks
        throw Error(std::string("cuDNN: ") + error.what());
    }
}

}  // namespace lmo::cuda
