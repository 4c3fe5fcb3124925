// A graph of a backend that cannot record: launching it issues its operations again.
#pragma once

#include <functional>
#include <utility>

#include "llmc/device/backend.h"

namespace lmo {

class ReissuedGraph : public Graph {
  public:
    explicit ReissuedGraph(std::function<void()> body) : body_(std::move(body)) {}
    void launch() override { body_(); }

  private:
    std::function<void()> body_;
};

}  // namespace lmo
