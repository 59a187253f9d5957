// Prints what plugins and TensorRT must agree on: slots of virtual functions with their signatures, layouts of
// structures, values of enumerations, names of interfaces. Compiled once with the real headers and once with ours; the
// two outputs must be equal. Lines of an interface that changed with version 11 begin with the version of the layout.

#include "../../plugins/glue/host.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <typeinfo>

#include <cxxabi.h>

namespace
{

using namespace nvinfer1;

// Bytes from the start of the virtual table (Itanium C++ ABI: a pointer to member holds the offset plus 1, or, on ARM,
// the offset).
template <typename Method>
ptrdiff_t slot(Method method)
{
    ptrdiff_t words[2];
    static_assert(sizeof(words) == sizeof(method));
    std::memcpy(words, &method, sizeof(words));
#if defined(__aarch64__)
    return words[0];
#else
    return words[0] - 1;
#endif
}

template <typename Type>
std::string nameOf()
{
    int status = 0;
    char* const text = abi::__cxa_demangle(typeid(Type).name(), nullptr, nullptr, &status);
    std::string name = text;
    std::free(text);
    for (std::string const space : {"v_1_0::", "v_2_0::", "nvinfer1::"})
    {
        for (size_t at = name.find(space); at != std::string::npos; at = name.find(space))
        {
            name.erase(at, space.size());
        }
    }
    return name;
}

template <typename Method>
void printMethod(char const* name, Method method)
{
    std::printf("%s: slot %td, %s\n", name, slot(method), nameOf<Method>().c_str());
}

// Where a derived class's first own virtual function comes: after all of the base's.
template <typename Base>
struct Next : Base
{
    virtual void next() = 0;
};

template <typename Base>
void printEnd(char const* name)
{
    std::printf("%s: %td bytes of slots, object of %zu bytes\n", name, slot(&Next<Base>::next), sizeof(Base));
}

#define METHOD(Class, function) printMethod(#Class "::" #function, &Class::function)
#define END(Class) printEnd<Class>(#Class)
#define STRUCT(Class) std::printf(#Class ": %zu bytes, alignment %zu\n", sizeof(Class), alignof(Class))
#define FIELD(Class, field)                                                                                            \
    std::printf(#Class "." #field ": at %zu, %s\n", offsetof(Class, field), nameOf<decltype(Class::field)>().c_str())
#define VALUE(Enum, value)                                                                                             \
    std::printf(#Enum "::" #value ": %d of %zu bytes\n", static_cast<int>(Enum::value), sizeof(Enum))

void enumerations()
{
    VALUE(DataType, kFLOAT);
    VALUE(DataType, kHALF);
    VALUE(DataType, kINT8);
    VALUE(DataType, kINT32);
    VALUE(DataType, kBOOL);
    VALUE(DataType, kUINT8);
    VALUE(DataType, kFP8);
    VALUE(DataType, kBF16);
    VALUE(DataType, kINT64);
    VALUE(TensorFormat, kLINEAR);
    VALUE(TensorFormat, kCHW2);
    VALUE(TensorFormat, kHWC8);
    VALUE(TensorFormat, kCHW4);
    VALUE(TensorFormat, kCHW16);
    VALUE(TensorFormat, kCHW32);
    VALUE(TensorFormat, kHWC);
    VALUE(DimensionOperation, kSUM);
    VALUE(DimensionOperation, kPROD);
    VALUE(DimensionOperation, kMAX);
    VALUE(DimensionOperation, kMIN);
    VALUE(DimensionOperation, kSUB);
    VALUE(DimensionOperation, kEQUAL);
    VALUE(DimensionOperation, kLESS);
    VALUE(DimensionOperation, kFLOOR_DIV);
    VALUE(DimensionOperation, kCEIL_DIV);
    VALUE(PluginFieldType, kFLOAT16);
    VALUE(PluginFieldType, kFLOAT32);
    VALUE(PluginFieldType, kFLOAT64);
    VALUE(PluginFieldType, kINT8);
    VALUE(PluginFieldType, kINT16);
    VALUE(PluginFieldType, kINT32);
    VALUE(PluginFieldType, kCHAR);
    VALUE(PluginFieldType, kDIMS);
    VALUE(PluginFieldType, kUNKNOWN);
    VALUE(TensorRTPhase, kBUILD);
    VALUE(TensorRTPhase, kRUNTIME);
    VALUE(PluginCapabilityType, kCORE);
    VALUE(PluginCapabilityType, kBUILD);
    VALUE(PluginCapabilityType, kRUNTIME);
    VALUE(APILanguage, kCPP);
    VALUE(APILanguage, kPYTHON);
    VALUE(ErrorCode, kSUCCESS);
    VALUE(ErrorCode, kUNSPECIFIED_ERROR);
    VALUE(ErrorCode, kINTERNAL_ERROR);
    VALUE(ErrorCode, kINVALID_ARGUMENT);
    VALUE(ErrorCode, kINVALID_CONFIG);
    VALUE(ErrorCode, kFAILED_ALLOCATION);
    VALUE(ErrorCode, kFAILED_INITIALIZATION);
    VALUE(ErrorCode, kFAILED_EXECUTION);
    std::printf("MAX_DIMS: %d\n", Dims::MAX_DIMS);
    std::printf("format combinations: %d\n", IPluginV3OneBuild::kDEFAULT_FORMAT_COMBINATION_LIMIT);
}

void structures()
{
    STRUCT(Dims);
    FIELD(Dims, nbDims);
    FIELD(Dims, d);
    STRUCT(PluginTensorDesc);
    FIELD(PluginTensorDesc, dims);
    FIELD(PluginTensorDesc, type);
    FIELD(PluginTensorDesc, format);
    FIELD(PluginTensorDesc, scale);
    STRUCT(DynamicPluginTensorDesc);
    FIELD(DynamicPluginTensorDesc, desc);
    FIELD(DynamicPluginTensorDesc, min);
    FIELD(DynamicPluginTensorDesc, max);
    FIELD(DynamicPluginTensorDesc, opt);
    STRUCT(DimsExprs);
    FIELD(DimsExprs, nbDims);
    FIELD(DimsExprs, d);
    STRUCT(PluginField);
    FIELD(PluginField, name);
    FIELD(PluginField, data);
    FIELD(PluginField, type);
    FIELD(PluginField, length);
    STRUCT(PluginFieldCollection);
    FIELD(PluginFieldCollection, nbFields);
    FIELD(PluginFieldCollection, fields);
    STRUCT(InterfaceInfo);
    FIELD(InterfaceInfo, kind);
    FIELD(InterfaceInfo, major);
    FIELD(InterfaceInfo, minor);
}

// Protected members, which a handle forwards to.
struct Expression : IDimensionExpr
{
    static size_t place()
    {
        auto const member = &Expression::mImpl;
        return reinterpret_cast<size_t const&>(member);
    }
};

struct Builder : IExprBuilder
{
    static size_t place()
    {
        auto const member = &Builder::mImpl;
        return reinterpret_cast<size_t const&>(member);
    }
};

void interfaces()
{
    METHOD(IVersionedInterface, getAPILanguage);
    METHOD(IVersionedInterface, getInterfaceInfo);
    END(IVersionedInterface);
    METHOD(IErrorRecorder, getNbErrors);
    METHOD(IErrorRecorder, getErrorCode);
    METHOD(IErrorRecorder, getErrorDesc);
    METHOD(IErrorRecorder, hasOverflowed);
    METHOD(IErrorRecorder, clear);
    METHOD(IErrorRecorder, reportError);
    METHOD(IErrorRecorder, incRefCount);
    METHOD(IErrorRecorder, decRefCount);
    END(IErrorRecorder);
    METHOD(IPluginResourceContext, getGpuAllocator);
    METHOD(IPluginResourceContext, getErrorRecorder);
    END(IPluginResourceContext);
    METHOD(apiv::VDimensionExpr, isConstant);
    METHOD(apiv::VDimensionExpr, getConstantValue);
    METHOD(apiv::VDimensionExpr, isSizeTensor);
    END(apiv::VDimensionExpr);
    METHOD(apiv::VExprBuilder, constant);
    METHOD(apiv::VExprBuilder, operation);
    METHOD(apiv::VExprBuilder, declareSizeTensor);
    END(apiv::VExprBuilder);
    END(IDimensionExpr);
    END(IExprBuilder);
    std::printf("IDimensionExpr.mImpl: at %zu\nIExprBuilder.mImpl: at %zu\n", Expression::place(), Builder::place());
    END(IPluginCapability);
    METHOD(IPluginV3, getCapabilityInterface);
    METHOD(IPluginV3, clone);
    END(IPluginV3);
    METHOD(IPluginV3OneCore, getPluginName);
    METHOD(IPluginV3OneCore, getPluginVersion);
    METHOD(IPluginV3OneCore, getPluginNamespace);
    END(IPluginV3OneCore);
    METHOD(IPluginV3OneBuild, configurePlugin);
    METHOD(IPluginV3OneBuild, getOutputDataTypes);
    METHOD(IPluginV3OneBuild, getOutputShapes);
    METHOD(IPluginV3OneBuild, supportsFormatCombination);
    METHOD(IPluginV3OneBuild, getNbOutputs);
    METHOD(IPluginV3OneBuild, getWorkspaceSize);
    METHOD(IPluginV3OneBuild, getValidTactics);
    METHOD(IPluginV3OneBuild, getNbTactics);
    METHOD(IPluginV3OneBuild, getTimingCacheID);
    METHOD(IPluginV3OneBuild, getFormatCombinationLimit);
    METHOD(IPluginV3OneBuild, getMetadataString);
    END(IPluginV3OneBuild);
    METHOD(IPluginV3OneRuntime, setTactic);
    METHOD(IPluginV3OneRuntime, onShapeChange);
    METHOD(IPluginV3OneRuntime, enqueue);
    METHOD(IPluginV3OneRuntime, attachToContext);
    METHOD(IPluginV3OneRuntime, getFieldsToSerialize);
    END(IPluginV3OneRuntime);
    END(IPluginCreatorInterface);
    METHOD(IPluginCreatorV3One, createPlugin);
    METHOD(IPluginCreatorV3One, getFieldNames);
    METHOD(IPluginCreatorV3One, getPluginName);
    METHOD(IPluginCreatorV3One, getPluginVersion);
    METHOD(IPluginCreatorV3One, getPluginNamespace);
    END(IPluginCreatorV3One);
}

template <typename Interface>
void printKind(char const* name)
{
    struct Kind : Interface
    {
        InterfaceInfo kind() const
        {
            return Interface::getInterfaceInfo();
        }
    };
    // getInterfaceInfo of these interfaces reads nothing of its object.
    alignas(Kind) unsigned char memory[sizeof(Kind)] = {};
    InterfaceInfo const info = reinterpret_cast<Kind const*>(memory)->kind();
    std::printf("%s: \"%s\" %d.%d\n", name, info.kind, info.major, info.minor);
}

// Of the host's interfaces by slots alone: ours name some types otherwise.
template <typename Logger, typename Finder, typename Registry>
void ours(int layout)
{
    std::printf("%d ILogger::log: slot %td\n", layout, slot(&Logger::log));
    std::printf("%d ILoggerFinder::findLogger: slot %td\n", layout, slot(&Finder::findLogger));
    std::printf("%d IPluginRegistry::getErrorRecorder: slot %td\n", layout, slot(&Registry::getErrorRecorder));
    std::printf("%d IPluginRegistry::loadLibrary: slot %td\n", layout, slot(&Registry::loadLibrary));
    std::printf("%d IPluginRegistry::registerCreator: slot %td\n", layout, slot(&Registry::registerCreator));
    std::printf("%d IPluginRegistry::getAllCreators: slot %td\n", layout, slot(&Registry::getAllCreators));
    std::printf("%d IPluginRegistry::getCreator: slot %td\n", layout, slot(&Registry::getCreator));
}

void hosts()
{
#ifdef TRTKP_TENSORRT_HEADERS
    int const layout = NV_TENSORRT_MAJOR;
    using Register = bool (IPluginRegistry::*)(IPluginCreatorInterface&, AsciiChar const*) noexcept;
    std::printf("%d ILogger::log: slot %td\n", layout, slot(&ILogger::log));
    std::printf("%d ILoggerFinder::findLogger: slot %td\n", layout, slot(&ILoggerFinder::findLogger));
    std::printf("%d IPluginRegistry::getErrorRecorder: slot %td\n", layout, slot(&IPluginRegistry::getErrorRecorder));
    std::printf("%d IPluginRegistry::loadLibrary: slot %td\n", layout, slot(&IPluginRegistry::loadLibrary));
    std::printf("%d IPluginRegistry::registerCreator: slot %td\n", layout,
        slot(static_cast<Register>(&IPluginRegistry::registerCreator)));
    std::printf("%d IPluginRegistry::getAllCreators: slot %td\n", layout, slot(&IPluginRegistry::getAllCreators));
    std::printf("%d IPluginRegistry::getCreator: slot %td\n", layout, slot(&IPluginRegistry::getCreator));
    std::printf("%d Severity: %d %d %d %d %d\n", layout, static_cast<int>(ILogger::Severity::kINTERNAL_ERROR),
        static_cast<int>(ILogger::Severity::kERROR), static_cast<int>(ILogger::Severity::kWARNING),
        static_cast<int>(ILogger::Severity::kINFO), static_cast<int>(ILogger::Severity::kVERBOSE));
    std::printf("version: %d.%d.%d\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH);
#else
    namespace glue = trtkp::glue;
    ours<glue::v10::Logger, glue::v10::LoggerFinder, glue::v10::Registry>(10);
    ours<glue::v11::Logger, glue::v11::LoggerFinder, glue::v11::Registry>(11);
    for (int const layout : {10, 11})
    {
        std::printf("%d Severity: %d %d %d %d %d\n", layout, static_cast<int>(glue::Severity::kINTERNAL_ERROR),
            static_cast<int>(glue::Severity::kERROR), static_cast<int>(glue::Severity::kWARNING),
            static_cast<int>(glue::Severity::kINFO), static_cast<int>(glue::Severity::kVERBOSE));
    }
#endif
}

} // namespace

int main()
{
    enumerations();
    structures();
    interfaces();
    printKind<IPluginV3>("IPluginV3");
    printKind<IPluginV3OneCore>("IPluginV3OneCore");
    printKind<IPluginV3OneBuild>("IPluginV3OneBuild");
    printKind<IPluginV3OneRuntime>("IPluginV3OneRuntime");
    printKind<IPluginCreatorV3One>("IPluginCreatorV3One");
    hosts();
}
