#include "../segmented_batch_norm.h"

namespace eidetic {

std::string segmented_batch_norm_forward(const SegmentedBatchNorm&) { return "not written yet"; }
std::string segmented_batch_norm_backward(const SegmentedBatchNorm&) { return "not written yet"; }
int segmented_batch_norm_splits() { return 64; }

}  // namespace eidetic
