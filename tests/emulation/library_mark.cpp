// Says that a library runs its kernels on the CPU: `trtkp.kernels` then takes host memory.

extern "C" __attribute__((visibility("default"))) int const trtkpEmulated = 1;
