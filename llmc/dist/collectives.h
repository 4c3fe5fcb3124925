// Sums and weights of all ranks, on tensors of a backend: between the devices where the backend
// connects them, through host memory and sockets (ranks.h) elsewhere. Every rank makes the same
// calls in the same order; `what` names them in messages. One rank exchanges nothing.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llmc/device/backend.h"
#include "llmc/dist/ownership.h"
#include "llmc/dist/ranks.h"

namespace lmo {

// A part of a flat buffer that travels by itself, and milestones of the backend: those that it has
// to wait for, or those that are reached when it has arrived.
struct Bucket {
    std::vector<Piece> pieces;
    std::vector<size_t> milestones;
};
// The milestones below it are used here.
constexpr size_t kFirstFreeMilestone = 1;

class Collectives {
  public:
    virtual ~Collectives() = default;

    // tensor[i] = sum over ranks of tensor[i]; tensors are fp32 or fp64.
    virtual void sum(const Tensor& tensor, const char* what) = 0;
    // The same, of each piece on its owner alone; elsewhere it stays as it was.
    virtual void sum_to_owners(const Tensor& flat, const std::vector<Piece>& pieces,
                               const char* what) = 0;
    // The sum divided by the number of ranks, on the owners.
    virtual void mean_to_owners(const Tensor& flat, const std::vector<Piece>& pieces,
                                const char* what) = 0;
    // Every rank gets each piece from its owner; of 16-bit types too.
    virtual void share(const Tensor& flat, const std::vector<Piece>& pieces, const char* what) = 0;

    // Whether tensors can travel while the backend computes. Where not, these do the same at once.
    virtual bool overlaps() const = 0;
    // sum_to_owners, bucket by bucket, each as soon as all its milestones are reached, which were
    // issued before. What was issued on the backend since the last of them may not touch `flat`.
    virtual void sum_to_owners(const Tensor& flat, const std::vector<Bucket>& buckets,
                               const char* what) = 0;
    // Begins to share what was computed so far, bucket by bucket; then(bucket) issues what is to be
    // done with each that has come. Behind await() of its milestones the backend may read it.
    // `behind`, where it is not empty, has the same pieces and follows all buckets. Before the host
    // waits for what awaits them, and before anything writes there, finish_sharing() must have been
    // called.
    virtual void begin_sharing(const Tensor& flat, const std::vector<Bucket>& buckets,
                               const std::function<void(const Bucket&)>& then,
                               const Tensor& behind, const char* what) = 0;
    virtual void finish_sharing() = 0;
    // Gives up what is under way: nothing on this device waits for other ranks any more.
    virtual void abort() = 0;

    // That this rank has sent so far, between devices and through sockets. Between devices bytes
    // of tensors are counted, without what the library adds.
    virtual int64_t bytes_sent() const = 0;
    // How tensors travel, for people.
    virtual std::string describe() const = 0;
};

// Connects the devices where they have memory of their own. Throws Error as Ranks does, and where
// the library for it is missing.
std::unique_ptr<Collectives> make_collectives(Backend& backend, Ranks& ranks);

}  // namespace lmo
