// The functions by which plugins find the TensorRT that is played.

#include "played_registry.h"

#include "../../plugins/glue/entry.h"

extern "C" void* getPluginRegistry()
{
    return host::isV10() ? static_cast<void*>(static_cast<trtkp::glue::v10::Registry*>(&host::gRegistry10))
                         : static_cast<trtkp::glue::v11::Registry*>(&host::gRegistry11);
}

extern "C" void* getLogger()
{
    return host::isV10() ? static_cast<void*>(static_cast<trtkp::glue::v10::Logger*>(&host::gLogger10))
                         : static_cast<trtkp::glue::v11::Logger*>(&host::gLogger11);
}

extern "C" int32_t getInferLibVersion()
{
    return host::gVersion;
}
