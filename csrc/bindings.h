// What both modules bind: problems as plain structs of numbers and addresses, filled attribute by attribute.
#pragma once
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <type_traits>

#include "segmented_batch_norm.h"

namespace eidetic {

namespace py = pybind11;

// Enumerations travel as int, pointers as the int that Tensor.data_ptr() gives.
template <auto member, class Struct>
void attribute(py::class_<Struct>& bound, const char* name) {
    using Value = std::remove_reference_t<decltype(std::declval<Struct&>().*member)>;
    if constexpr (std::is_pointer_v<Value>) {
        bound.def_property(
            name, [](const Struct& s) { return reinterpret_cast<std::uintptr_t>(s.*member); },
            [](Struct& s, std::uintptr_t address) { s.*member = reinterpret_cast<Value>(address); });
    } else if constexpr (std::is_enum_v<Value>) {
        bound.def_property(
            name, [](const Struct& s) { return static_cast<int>(s.*member); },
            [](Struct& s, int number) { s.*member = static_cast<Value>(number); });
    } else {
        bound.def_readwrite(name, member);
    }
}

// Runs without the interpreter's lock; a non-empty answer becomes a RuntimeError.
template <class Struct, std::string (*function)(const Struct&)>
void run(const Struct& problem) {
    std::string error;
    {
        py::gil_scoped_release release;
        error = function(problem);
    }
    if (!error.empty()) throw std::runtime_error(error);
}

inline void bind_segmented_batch_norm(py::module_& m) {
    using Norm = SegmentedBatchNorm;
    py::class_<Norm> norm(m, "SegmentedBatchNorm", py::module_local());  // each module has its own
    norm.def(py::init([] { return Norm{}; }));
    attribute<&Norm::outer>(norm, "outer");
    attribute<&Norm::channels>(norm, "channels");
    attribute<&Norm::inner>(norm, "inner");
    attribute<&Norm::frozen>(norm, "frozen");
    attribute<&Norm::x_stride>(norm, "x_stride");
    attribute<&Norm::residual_stride>(norm, "residual_stride");
    attribute<&Norm::dy_stride>(norm, "dy_stride");
    attribute<&Norm::dtype>(norm, "dtype");
    attribute<&Norm::parameter_dtype>(norm, "parameter_dtype");
    attribute<&Norm::activation>(norm, "activation");
    attribute<&Norm::training>(norm, "training");
    attribute<&Norm::full_input_grad>(norm, "full_input_grad");
    attribute<&Norm::momentum>(norm, "momentum");
    attribute<&Norm::eps>(norm, "eps");
    attribute<&Norm::x>(norm, "x");
    attribute<&Norm::residual>(norm, "residual");
    attribute<&Norm::weight>(norm, "weight");
    attribute<&Norm::bias>(norm, "bias");
    attribute<&Norm::frozen_scale>(norm, "frozen_scale");
    attribute<&Norm::frozen_shift>(norm, "frozen_shift");
    attribute<&Norm::running_mean>(norm, "running_mean");
    attribute<&Norm::running_var>(norm, "running_var");
    attribute<&Norm::mean>(norm, "mean");
    attribute<&Norm::rstd>(norm, "rstd");
    attribute<&Norm::y>(norm, "y");
    attribute<&Norm::dy>(norm, "dy");
    attribute<&Norm::dx>(norm, "dx");
    attribute<&Norm::dresidual>(norm, "dresidual");
    attribute<&Norm::dweight>(norm, "dweight");
    attribute<&Norm::dbias>(norm, "dbias");
    attribute<&Norm::workspace>(norm, "workspace");
    attribute<&Norm::device>(norm, "device");
    attribute<&Norm::stream>(norm, "stream");
    attribute<&Norm::threads>(norm, "threads");
    m.def("segmented_batch_norm_forward", &run<Norm, segmented_batch_norm_forward>);
    m.def("segmented_batch_norm_backward", &run<Norm, segmented_batch_norm_backward>);
    m.def("segmented_batch_norm_workspace", &segmented_batch_norm_workspace);
}

}  // namespace eidetic
