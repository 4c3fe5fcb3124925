#include "llmc/train/overlap.h"

namespace lmo {

namespace {

// Milestones: section s completes its gradients, and its weights have come.
size_t completed(int64_t section) { return kFirstFreeMilestone + static_cast<size_t>(section); }
size_t arrived(int64_t section, int64_t count) { return completed(count + section); }

using Sections = std::vector<std::vector<Piece>>;

Sections by_section(const ParameterList& parameters, int64_t n_layer,
                    const std::vector<Piece>& pieces) {
    Sections sections(static_cast<size_t>(n_layer + 2));
    for (const Piece& piece : pieces) {
        int parameter = 0;  // that the piece begins in
        while (parameter + 1 < parameters.size() &&
               parameters.offset(parameter + 1) <= piece.offset) {
            ++parameter;
        }
        const int64_t section = section_of(parameters[parameter], n_layer);
        sections[static_cast<size_t>(section)].push_back(piece);
    }
    return sections;
}

// Takes sections one by one.
class Filler {
  public:
    Filler(std::vector<Bucket>& buckets, int64_t least) : buckets_(buckets), least_(least) {}

    void add(const std::vector<Piece>& pieces, size_t milestone) {
        if (buckets_.empty() || elements_ >= least_) {
            buckets_.emplace_back();
            elements_ = 0;
        }
        Bucket& bucket = buckets_.back();
        bucket.pieces.insert(bucket.pieces.end(), pieces.begin(), pieces.end());
        bucket.milestones.push_back(milestone);
        for (const Piece& piece : pieces) elements_ += piece.count;
    }

  private:
    std::vector<Bucket>& buckets_;
    int64_t least_, elements_ = 0;
};

}  // namespace

Overlap::Overlap(const ParameterList& parameters, int64_t n_layer, const std::vector<Piece>& pieces,
                 int64_t bucket_elements)
    : count_(n_layer + 2) {
    const Sections sections = by_section(parameters, n_layer, pieces);
    Filler complete(gradients, bucket_elements), read(weights, bucket_elements);
    for (int64_t s = 0; s < count_; ++s) {
        const int64_t back = count_ - 1 - s;
        complete.add(sections[static_cast<size_t>(back)], completed(back));
        read.add(sections[static_cast<size_t>(s)], arrived(s, count_));
    }
}

StepSections Overlap::sections(Backend& backend) const {
    return {[&backend, count = count_](int64_t s) { backend.await(arrived(s, count)); },
            [&backend](int64_t s) { backend.reach(completed(s)); }};
}

int64_t bucket_elements(const Config& config, DType master) {
    return static_cast<int64_t>(1e6 * config.run.bucket_mb / static_cast<double>(size_of(master)));
}

}  // namespace lmo
