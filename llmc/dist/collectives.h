// Sums and weights of all ranks, on tensors of a backend: between the devices where the backend
// connects them, through host memory and sockets (ranks.h) elsewhere. Every rank makes the same
// calls in the same order; `what` names them in messages. One rank exchanges nothing.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "llmc/device/backend.h"
#include "llmc/dist/ownership.h"
#include "llmc/dist/ranks.h"

namespace lmo {

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
    // Every rank gets each piece from its owner.
    virtual void share(const Tensor& flat, const std::vector<Piece>& pieces, const char* what) = 0;

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
