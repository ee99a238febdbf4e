// The kernels of one instruction set by activation. Included once for each set, after rows.h.

template <Activation activation>
Kernels made() {
    return {plane_forward<activation>, plane_backward<activation>, row_moments, row_forward<activation>,
            row_sums<activation>, row_backward<activation>};
}

Kernels kernels(Activation activation) {
    switch (activation) {
        case Activation::relu: return made<Activation::relu>();
        case Activation::relu6: return made<Activation::relu6>();
        case Activation::silu: return made<Activation::silu>();
        case Activation::gelu: return made<Activation::gelu>();
        case Activation::hardswish: return made<Activation::hardswish>();
        default: return made<Activation::none>();
    }
}
