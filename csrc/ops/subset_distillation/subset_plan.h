// Finds out, once a call, how the subsets' columns lie: in runs of neighbours (classes sorted by
// their counts) or scattered, overlapping or not, and what they leave out.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/subset_distillation/subset_distillation_cpu.h"

namespace ltk {

template <class Acc>
class SubsetPlanner {
 public:
  explicit SubsetPlanner(const SubsetDistillationParams<Acc>& p) {
    find_pieces(p);
    if (valid_) {
      find_outside(p);
      if (p.column_temperature != nullptr) invert_temperatures(p);
    }
  }
  // Whether all classes are columns of the student, and distinct within their subset.
  bool valid() const { return valid_; }
  const SubsetPlan<Acc>& plan() const { return plan_; }
  SubsetPlanner(const SubsetPlanner&) = delete;
  SubsetPlanner& operator=(const SubsetPlanner&) = delete;

 private:
  static constexpr int64_t kPiece = 1024;      // what the kernel stages at a time
  static constexpr int64_t kShortestRun = 24;  // below, a piece of its own costs more than it saves
  static constexpr size_t kMostOutside = 16;   // ranges; more than these, and rows are cleared

  static int64_t run_at(const int32_t* classes, int64_t size, int64_t at) {
    int64_t end = at + 1;
    while (end < size && classes[end] == classes[end - 1] + 1) end++;
    return end - at;
  }

  void find_pieces(const SubsetDistillationParams<Acc>& p) {
    last_subset_.assign(p.columns, -1);
    classes_.resize(p.offset[p.subsets]);
    first_piece_.push_back(0);
    for (int l = 0; l < p.subsets; l++) {
      const int64_t size = p.offset[l + 1] - p.offset[l];
      int32_t* const classes = classes_.data() + p.offset[l];
      for (int64_t i = 0; i < size; i++) {
        const int64_t c = p.classes[l][i];
        if (c < 0 || c >= p.columns || last_subset_[c] == l) {
          valid_ = false;
          return;
        }
        plan_.overlapping |= last_subset_[c] >= 0;
        last_subset_[c] = static_cast<int8_t>(l);
        classes[i] = static_cast<int32_t>(c);
      }
      int64_t scattered = 0;  // [scattered, at) waits to become pieces
      for (int64_t at = 0; at < size;) {
        const int64_t run = run_at(classes, size, at);
        // A subset that is one run is, however short.
        if (run >= kShortestRun || run == size) {
          add(p, l, scattered, at, false);
          add(p, l, at, at + run, true);
          scattered = at + run;
        }
        at += run;
      }
      add(p, l, scattered, size, false);
      first_piece_.push_back(static_cast<int64_t>(pieces_.size()));
      plan_.largest_subset = std::max(plan_.largest_subset, size);
      plan_.most_pieces = std::max(plan_.most_pieces, first_piece_[l + 1] - first_piece_[l]);
    }
    plan_.classes = classes_.data();
    plan_.pieces = pieces_.data();
    plan_.first_piece = first_piece_.data();
  }

  void add(const SubsetDistillationParams<Acc>& p, int l, int64_t begin, int64_t end, bool run) {
    const int32_t* const classes = classes_.data() + p.offset[l];
    for (int64_t at = begin; at < end; at += kPiece)
      pieces_.push_back({at, std::min(kPiece, end - at), run ? classes[at] : -1, p.offset[l] + at});
  }

  void find_outside(const SubsetDistillationParams<Acc>& p) {
    for (int64_t c = 0; c < p.columns && outside_.size() <= kMostOutside; c++) {
      if (last_subset_[c] >= 0) continue;
      if (outside_.empty() || outside_.back().end != c)
        outside_.push_back({c, c + 1});
      else
        outside_.back().end++;
    }
    if (outside_.size() > kMostOutside) outside_.assign(1, {0, p.columns});
    plan_.outside = outside_.data();
    plan_.outside_count = static_cast<int64_t>(outside_.size());
  }

  void invert_temperatures(const SubsetDistillationParams<Acc>& p) {
    for (const int32_t c : classes_) inverse_temperature_.push_back(1 / p.column_temperature[c]);
    plan_.inverse_temperature = inverse_temperature_.data();
    plan_.largest_inverse_temperature =
        *std::max_element(inverse_temperature_.begin(), inverse_temperature_.end());
  }

  bool valid_ = true;
  SubsetPlan<Acc> plan_{};
  std::vector<int8_t> last_subset_;  // [C] that a column was met in, or -1
  std::vector<int32_t> classes_;
  std::vector<SubsetPiece> pieces_;
  std::vector<int64_t> first_piece_;
  std::vector<ColumnRange> outside_;
  std::vector<Acc> inverse_temperature_;
};

}  // namespace ltk
