#pragma once

namespace dip_fast {

// What surrounds an image that a convolution reads.
enum class Padding { zeros, reflect, replicate };

}  // namespace dip_fast
