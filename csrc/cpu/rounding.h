// Included first: no product is fused with a sum, so that every instruction set gives the same bits.
#pragma once

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
// Branches that are the same for a whole call stay in the loops: hoisting each doubles the code and the time to compile.
#pragma GCC optimize("fp-contract=off", "no-math-errno", "no-trapping-math", "no-unswitch-loops")
#endif
