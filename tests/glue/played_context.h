// What TensorRT hands to a plugin: sizes that compute, and the resources of a context.

#pragma once

#include "../../plugins/glue/tensorrt.h"
#include "check.h"

#include <cstdio>
#include <deque>
#include <string>

namespace host
{

using namespace nvinfer1;

class Recorder : public IErrorRecorder
{
public:
    Recorder() = default;

    // The name stands before what it prints.
    explicit Recorder(std::string const& name)
        : mName{&name}
    {
    }

    int32_t getNbErrors() const noexcept override
    {
        return 0;
    }
    ErrorCode getErrorCode(int32_t) const noexcept override
    {
        return ErrorCode::kSUCCESS;
    }
    char const* getErrorDesc(int32_t) const noexcept override
    {
        return "";
    }
    bool hasOverflowed() const noexcept override
    {
        return false;
    }
    void clear() noexcept override {}
    bool reportError(ErrorCode code, char const* description) noexcept override
    {
        char const* const name = mName == nullptr ? "" : mName->c_str();
        std::printf("%srecorded %d %s\n", name, static_cast<int>(code), description);
        return false;
    }
    int32_t incRefCount() noexcept override
    {
        return 1;
    }
    int32_t decRefCount() noexcept override
    {
        return 0;
    }

private:
    std::string const* mName{nullptr};
};

// Sizes are numbers here: an expression computes at once.
class Number : public IDimensionExpr, public apiv::VDimensionExpr
{
public:
    explicit Number(int64_t value)
        : mValue{value}
    {
        mImpl = this;
    }
    bool isConstant() const override
    {
        return true;
    }
    int64_t getConstantValue() const override
    {
        return mValue;
    }
    bool isSizeTensor() const override
    {
        return false;
    }

private:
    int64_t mValue;
};

class Builder : public IExprBuilder, public apiv::VExprBuilder
{
public:
    Builder()
    {
        mImpl = this;
    }
    IDimensionExpr const* constant(int64_t value) override
    {
        return &mNumbers.emplace_back(value);
    }
    IDimensionExpr const* operation(
        DimensionOperation op, IDimensionExpr const& first, IDimensionExpr const& second) override
    {
        int64_t const a = first.getConstantValue();
        int64_t const b = second.getConstantValue();
        switch (op)
        {
        case DimensionOperation::kSUM:
            return constant(a + b);
        case DimensionOperation::kFLOOR_DIV:
            return constant(a / b - (a % b < 0 ? 1 : 0));
        default:
            die("an operation that is not played");
        }
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override
    {
        die("declareSizeTensor");
    }

private:
    std::deque<Number> mNumbers;
};

class Context : public IPluginResourceContext
{
public:
    IGpuAllocator* getGpuAllocator() const noexcept override
    {
        return nullptr;
    }
    IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return &mRecorder;
    }

private:
    mutable Recorder mRecorder;
};

} // namespace host
