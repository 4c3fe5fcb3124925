// The one border between the program and the hardware.
//
// A Backend is a set of operations on dense tensors in its own memory: those of the model are in
// operations.h, those of the optimizers in optimizer_operations.h. Everything above this file is
// written once against it; llmc/cpu implements it on the processor (in fp64 it is the oracle of all
// tests), and a new device is a new folder that implements it again.
//
// Rules of the border:
//  * An operation never allocates. Those that need scratch memory say how much (`workspace_bytes`
//    with the same parameter struct, data pointers not read) and get it in `workspace`.
//  * The element type is chosen inside the operation, from the tensors' dtype. Letters:
//    B sequences, T positions, N = B*T rows, C channels (d_model), H heads, K key/value heads,
//    D head size, F SwiGLU width, V vocabulary. "compute" is the type of activations and of the
//    weights that a matrix product reads; gradients, statistics and master weights are "master":
//    fp32, or fp64 when compute is fp64.
//  * Scalars that change at every step are read from device memory (fp64), so that a captured
//    sequence of operations stays valid.
//  * Every reduction has a fixed order: equal inputs, threads and processor features give equal
//    bits.
//  * Operations run in order; only copy_out and synchronize wait for them. A mismatch of shapes or
//    types is a programmer error (assert), lack of memory is an Error.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "llmc/core/tensor.h"
#include "llmc/device/communicator.h"
#include "llmc/device/operations.h"
#include "llmc/device/optimizer_operations.h"

namespace lmo {

// A recorded sequence of operations.
class Graph {
  public:
    virtual ~Graph() = default;
    virtual void launch() = 0;
};

class Backend {
  public:
    virtual ~Backend() = default;

    // One line for people: device, libraries, threads, features in use.
    virtual std::string describe() const = 0;
    // The type in which this device computes fastest without a loss that matters: bf16 or fp32.
    virtual DType preferred_compute() const = 0;
    // The type inside of a Newton-Schulz iteration on fp32 matrices that costs no accuracy that
    // training notices: f16 on tensor cores, else f32.
    virtual DType preferred_newton_schulz() const = 0;
    // Whether it may be this one: f16, bf16 or f32.
    virtual bool has_newton_schulz(DType inner) const = 0;
    // Whether compute and master may be f64: the oracle of tests.
    virtual bool has_fp64() const = 0;
    // Why there is no attention by a library here; empty where there is.
    virtual std::string missing_attention_library() const = 0;
    // Whether this is a device beside the processor: with memory of its own, and with operations
    // that run behind the calls that issue them.
    virtual bool is_separate() const = 0;
    // Memory that allocate may still hand out, about; infinite where nobody says.
    virtual double free_bytes() const = 0;

    // Memory. allocate: 256-byte aligned, contents undefined; Error when there is none left.
    // copy_in has read the host's bytes when it returns.
    virtual void* allocate(size_t bytes) = 0;
    virtual void release(void* memory) = 0;
    virtual void copy_in(const Tensor& to, const void* host) = 0;  // to.bytes() bytes
    virtual void copy_out(void* host, const Tensor& from) = 0;     // waits
    virtual void copy(const Tensor& to, const Tensor& from) = 0;   // converts between dtypes
    virtual void zero(const Tensor& tensor) = 0;

    // Order. capture records the operations that body() issues, without running them.
    virtual std::unique_ptr<Graph> capture(std::function<void()> body) = 0;
    virtual void synchronize() = 0;
    // A second order of work beside the first, where a device can: operations that body() issues
    // run in it, as collectives (connect()) do. Nothing orders the two but milestones: what is
    // issued behind await(i), in either order, waits until i has been reached as often as reach(i)
    // was issued before. Recorded ones count at each launch. synchronize and copy_out wait for the
    // first order alone. Where there is one order only, all this is that order.
    virtual void aside(const std::function<void()>& body) { body(); }
    virtual void reach(size_t /*milestone*/) {}
    virtual void await(size_t /*milestone*/) {}
    // Whether a GPU's own kernels may be launched before those ahead of them have ended, to the
    // same bits; they may not at first. Holds for what is issued or recorded from then on. False
    // where the device cannot do what is asked.
    virtual bool set_dependent_launch(bool on) { return !on; }
    // Moments: mark(i) is when all operations issued before it are done, seconds_between waits for
    // both. For the few numbers from 0 on that are in use; not while recording.
    virtual void mark(size_t moment) = 0;
    virtual double seconds_between(size_t from, size_t to) = 0;

    // Dense.
    virtual size_t workspace_bytes(const Gemm&) const = 0;
    virtual size_t workspace_bytes(const SymmetricProduct&) const = 0;
    virtual size_t workspace_bytes(const AttentionForward&) const = 0;
    virtual size_t workspace_bytes(const AttentionBackward&) const = 0;
    virtual void gemm(const Gemm&) = 0;
    virtual void symmetric_product(const SymmetricProduct&) = 0;
    virtual void attention_forward(const AttentionForward&) = 0;
    virtual void attention_backward(const AttentionBackward&) = 0;

    // Model.
    virtual size_t workspace_bytes(const EmbeddingBackward&) const = 0;
    virtual size_t workspace_bytes(const RmsNormBackward&) const = 0;
    virtual void embedding_forward(const EmbeddingForward&) = 0;
    virtual void embedding_backward(const EmbeddingBackward&) = 0;
    virtual void rmsnorm_forward(const RmsNormForward&) = 0;
    virtual void rmsnorm_backward(const RmsNormBackward&) = 0;
    virtual void rope(const Rope&) = 0;
    virtual void swiglu_forward(const SwigluForward&) = 0;
    virtual void swiglu_backward(const SwigluBackward&) = 0;
    virtual void classifier(const Classifier&) = 0;

    // Reductions.
    virtual size_t workspace_bytes(const SumOfSquares&) const = 0;
    virtual void sum(const Sum&) = 0;
    virtual void sum_of_squares(const SumOfSquares&) = 0;
    virtual void clip_factor(const ClipFactor&) = 0;

    // Optimizer.
    virtual size_t workspace_bytes(const FrobeniusNormalize&) const = 0;
    virtual size_t workspace_bytes(const NewtonSchulz&) const = 0;
    virtual size_t workspace_bytes(const RowMomentNormalize&) const = 0;
    virtual size_t workspace_bytes(const SchattenDirection&) const = 0;
    virtual size_t workspace_bytes(const SingularRange&) const = 0;
    virtual size_t workspace_bytes(const DotProducts&) const = 0;
    virtual void momentum(const Momentum&) = 0;
    virtual void adam(const Adam&) = 0;
    virtual void sign(const Sign&) = 0;
    virtual void frobenius_normalize(const FrobeniusNormalize&) = 0;
    virtual void newton_schulz(const NewtonSchulz&) = 0;
    virtual void line_normalize(const LineNormalize&) = 0;
    virtual void row_moment_normalize(const RowMomentNormalize&) = 0;
    virtual void schatten_direction(const SchattenDirection&) = 0;
    virtual void singular_range(const SingularRange&) = 0;
    virtual void dot_products(const DotProducts&) = 0;
    virtual void step_sizes(const StepSizes&) = 0;
    virtual void head_maxima(const HeadMaxima&) = 0;
    virtual void qk_clip(const QkClip&) = 0;
    // Floating-point operations of the products that it does here: fewer than those of plain ones
    // where it uses symmetry, more where it pads.
    virtual double executed_flops(const NewtonSchulz&) const = 0;
    virtual void apply(const Apply&) = 0;
    virtual void join_weights(const JoinWeights&) = 0;
    virtual size_t workspace_bytes(const FusedUpdate&) const = 0;
    virtual void fused_update(const FusedUpdate&) = 0;
    virtual void spectral_update(const SpectralUpdate&) = 0;

    // Several ranks. device_id: which device of all machines this is; "" on the processor, whose
    // ranks exchange tensors in host memory. Else one rank makes an id for all, and each connects
    // with it: to be awaited by ended(). Both throw Error where the library is missing.
    virtual std::string device_id() const { return {}; }
    virtual std::string make_communicator_id() { return {}; }
    virtual std::unique_ptr<Communicator> connect(const std::string& /*id*/, int /*rank*/,
                                                  int /*ranks*/) {
        return nullptr;
    }

    // Text that grows.
    virtual size_t workspace_bytes(const AttentionOne&) const = 0;
    virtual void attention_one(const AttentionOne&) = 0;
};

// Of the ranks of a run on this machine, the one that a backend is made for.
struct LocalRank {
    int number = 0, count = 1;
};

// The makers; each backend's folder defines its own.
std::unique_ptr<Backend> make_cpu_backend(int threads);  // 0: all cores of this process
// The visible device with the number of the rank; the only one where the launcher shows each rank
// one. Throws Error where there is none, UsageError where there are fewer than ranks.
std::unique_ptr<Backend> make_cuda_backend(const LocalRank& rank = {});

}  // namespace lmo
