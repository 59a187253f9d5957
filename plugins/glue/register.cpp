// libtrtkp_register.so registers the plugins when it is loaded, for hosts that only call dlopen. It keeps libtrtkp.so
// loaded.

#include "entry.h"

#include <cstdio>

namespace
{

struct Registration
{
    Registration()
    {
        int32_t const registries = trtkpRegisterPlugins();
        if (registries <= 0)
        {
            std::fprintf(stderr,
                registries == 0 ? "[trtkp] libtrtkp_register.so: no TensorRT is loaded in this process, so no plugin "
                                  "is registered; "
                                  "load TensorRT first\n"
                                : "[trtkp] libtrtkp_register.so: TensorRT has refused a plugin\n");
        }
    }
} const gRegistration;

} // namespace
