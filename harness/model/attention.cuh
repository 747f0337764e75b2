// The kernels of attention, one for every size of a head (HEAD_DIMS in gpu.rs).
#pragma once

// NAME_dD calls FUNCTION<D>; at the end come the threads of a block and, if need be, the blocks that
// a multiprocessor must have room for. PARAMETERS and ARGUMENTS are in parentheses.
#define ATTENTION_KERNEL(NAME, D, FUNCTION, PARAMETERS, ARGUMENTS, ...)                           \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) NAME##_d##D PARAMETERS {            \
        FUNCTION<D> ARGUMENTS;                                                                    \
    }
#define ATTENTION_KERNELS(NAME, FUNCTION, PARAMETERS, ARGUMENTS, ...)                             \
    ATTENTION_KERNEL(NAME, 16, FUNCTION, PARAMETERS, ARGUMENTS, __VA_ARGS__)                      \
    ATTENTION_KERNEL(NAME, 32, FUNCTION, PARAMETERS, ARGUMENTS, __VA_ARGS__)                      \
    ATTENTION_KERNEL(NAME, 64, FUNCTION, PARAMETERS, ARGUMENTS, __VA_ARGS__)                      \
    ATTENTION_KERNEL(NAME, 80, FUNCTION, PARAMETERS, ARGUMENTS, __VA_ARGS__)                      \
    ATTENTION_KERNEL(NAME, 96, FUNCTION, PARAMETERS, ARGUMENTS, __VA_ARGS__)                      \
    ATTENTION_KERNEL(NAME, 128, FUNCTION, PARAMETERS, ARGUMENTS, __VA_ARGS__)                     \
    ATTENTION_KERNEL(NAME, 256, FUNCTION, PARAMETERS, ARGUMENTS, __VA_ARGS__)
