#include "entry.h"

#include "creator.h"
#include "host.h"

using namespace trtkp::glue;

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    try
    {
        count = static_cast<int32_t>(creators().size());
        return creators().data();
    }
    catch (...)
    {
        count = 0;
        return nullptr;
    }
}

void setLoggerFinder(void* finder)
{
    useLoggerFinder(finder);
}

int32_t trtkpRegisterPlugins()
{
    try
    {
        return registerCreators(creators().data(), static_cast<int32_t>(creators().size()));
    }
    catch (...)
    {
        return -1;
    }
}
