// Devices and errors of the CUDA runtime, in words.
#pragma once
#include <string>

namespace eidetic {

// Empty, or what the number of a CUDA error means and what to do about it.
std::string cuda_error_text(int error);

// How many devices this process sees; `error` says why there is none.
int cuda_device_count(std::string& error);

// The CUDA version that the module was built with and the newest that the driver supports (0: no driver), as
// 1000 * major + 10 * minor.
int cuda_built_for();
int cuda_driver_supports();

// The GPU code in the module, machine code and PTX: "sm_80:sm_90:compute_90".
const char* cuda_code();

}  // namespace eidetic
