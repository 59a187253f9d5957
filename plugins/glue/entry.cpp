#include "entry.h"

#include "creator.h"
#include "host.h"

using namespace trtkp::glue;

// Where the current function returns to, which is in the library that calls it.
#define TRTKP_RETURN_ADDRESS __builtin_extract_return_addr(__builtin_return_address(0))

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    count = 0;
    try
    {
        Host const* const host = caller(TRTKP_RETURN_ADDRESS);
        if (host != nullptr && !host->isKnown())
        {
            return nullptr;
        }
        auto const& creators = creatorsFor(host);
        count = static_cast<int32_t>(creators.size());
        return creators.data();
    }
    catch (...)
    {
        return nullptr;
    }
}

void setLoggerFinder(void* finder)
{
    try
    {
        if (Host* const host = caller(TRTKP_RETURN_ADDRESS))
        {
            host->useFinder(finder);
        }
    }
    catch (...)
    {
    }
}

int32_t trtkpRegisterPlugins()
{
    try
    {
        int32_t registries = 0;
        bool all = true;
        for (Host const* const host : hosts())
        {
            if (!host->isKnown() || host->registry() == nullptr)
            {
                continue;
            }
            if (host->isRtx())
            {
                // It aborts when a network uses a plugin.
                log(host, Severity::kWARNING, "plugins are not registered with TensorRT-RTX, which cannot run them");
                continue;
            }
            auto const& creators = creatorsFor(host);
            all = host->registerCreators(creators.data(), static_cast<int32_t>(creators.size())) && all;
            ++registries;
        }
        return all ? registries : -1;
    }
    catch (...)
    {
        return -1;
    }
}
