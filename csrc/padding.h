#pragma once

namespace dip_fast {

// The values that a convolution reads beyond the border of an image.
enum class Padding { zeros, reflect, replicate };

}  // namespace dip_fast
