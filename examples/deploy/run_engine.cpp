// Runs a bundle's model.engine on zeros with TensorRT's C++ interface, plugins included: see docs/guides/deploy.md.
//
//   run_engine model.engine [libtrtkp.so]
//
// With one input and one output; the batch is the profile's usual one.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace
{

using namespace nvinfer1;

class Logger : public ILogger
{
public:
    void log(Severity severity, char const* message) noexcept override
    {
        if (severity <= Severity::kWARNING)
        {
            std::cerr << message << '\n';
        }
    }
};

void require(bool condition, std::string const& what)
{
    if (!condition)
    {
        throw std::runtime_error(what);
    }
}

void check(cudaError_t status)
{
    require(status == cudaSuccess, cudaGetErrorString(status));
}

size_t bytesOf(DataType type)
{
    switch (type)
    {
    case DataType::kFLOAT:
    case DataType::kINT32:
        return 4;
    case DataType::kHALF:
    case DataType::kBF16:
        return 2;
    case DataType::kINT64:
        return 8;
    default:
        return 1;
    }
}

size_t bytesOf(Dims const& shape, DataType type)
{
    size_t bytes = bytesOf(type);
    for (int32_t axis = 0; axis < shape.nbDims; ++axis)
    {
        bytes *= static_cast<size_t>(shape.d[axis]);
    }
    return bytes;
}

std::vector<char> read(std::string const& path)
{
    std::ifstream file(path, std::ios::binary);
    require(file.good(), path + " cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
}

void run(std::string const& enginePath, std::string const& library)
{
    Logger logger;
    std::unique_ptr<IRuntime> runtime{createInferRuntime(logger)};
    require(runtime != nullptr, "TensorRT does not start");
    if (!library.empty())
    {
        require(runtime->getPluginRegistry().loadLibrary(library.c_str()) != nullptr, library + " cannot be loaded");
    }
    auto const plan = read(enginePath);
    std::unique_ptr<ICudaEngine> engine{runtime->deserializeCudaEngine(plan.data(), plan.size())};
    require(engine != nullptr, enginePath + " cannot be opened");
    std::unique_ptr<IExecutionContext> context{engine->createExecutionContext()};
    require(context != nullptr, "no execution context");

    cudaStream_t stream{};
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    std::vector<void*> buffers;
    for (int32_t index = 0; index < engine->getNbIOTensors(); ++index)
    {
        char const* name = engine->getIOTensorName(index);
        if (engine->getTensorIOMode(name) == TensorIOMode::kINPUT)
        {
            auto const usual = engine->getProfileShape(name, 0, OptProfileSelector::kOPT);
            require(context->setInputShape(name, usual), "the shape is refused");
        }
        // outputs come behind the inputs, so every shape is known by now
        auto const bytes = bytesOf(context->getTensorShape(name), engine->getTensorDataType(name));
        buffers.push_back(nullptr);
        check(cudaMalloc(&buffers.back(), bytes));
        check(cudaMemsetAsync(buffers.back(), 0, bytes, stream));
        require(context->setTensorAddress(name, buffers.back()), "the address is refused");
        std::cout << name << ' ' << bytes << " bytes\n";
    }
    require(context->enqueueV3(stream), "the engine failed");
    check(cudaStreamSynchronize(stream));
    for (void* buffer : buffers)
    {
        check(cudaFree(buffer));
    }
    check(cudaStreamDestroy(stream));
}

} // namespace

int main(int argc, char** argv)
{
    try
    {
        require(argc == 2 || argc == 3, "usage: run_engine model.engine [libtrtkp.so]");
        run(argv[1], argc == 3 ? argv[2] : "");
        return 0;
    }
    catch (std::exception const& error)
    {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
