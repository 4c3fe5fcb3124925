// Collectives of the devices of several ranks, on tensors in their own memory. A backend whose
// memory the host does not share makes one (Backend::connect); llmc/dist/collectives.h is what the
// program calls.
//
// Every rank makes the same calls in the same order. They run in the backend's second order of work
// (Backend::aside) and may not be followed by other operations there until issued() has said so.
// Equal inputs give equal bits at an equal number of ranks on equal devices, connections and
// libraries.
#pragma once

#include <span>
#include <string>

#include "llmc/core/tensor.h"

namespace lmo {

// A tensor that all ranks have, in fp32 or fp64, to be shared in 16-bit types too, and the rank
// that it belongs to.
struct OwnedTensor {
    Tensor tensor;
    int owner;
};

class Communicator {
  public:
    // Ends at once, whatever the others do.
    virtual ~Communicator() = default;

    // Whether connecting has ended and the device has been given all that was called since; and
    // whether that has ended, too. Never wait. Throw Error where the library reports one: the
    // communicator is of no use then.
    virtual bool issued() = 0;
    virtual bool ended() = 0;

    virtual void sum(const Tensor& tensor) = 0;                          // on all ranks
    virtual void sum_to_owners(std::span<const OwnedTensor> parts) = 0;  // elsewhere unchanged
    virtual void share(std::span<const OwnedTensor> parts) = 0;          // from their owners

    // Gives up what is under way, so that nothing on this device waits for other ranks any more.
    virtual void abort() = 0;

    virtual std::string describe() const = 0;  // library and version
};

}  // namespace lmo
