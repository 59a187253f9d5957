#include "tactics.h"

#include "../capi/trtkp.h"
#include "error.h"

#include <algorithm>

namespace trtkp::glue
{
namespace
{

std::string_view constexpr kSplit = "_split";
std::string_view constexpr kGpu = "sm_";
size_t constexpr kMaxDigits = 3;

bool isDigit(char c)
{
    return c >= '0' && c <= '9';
}

bool isOfName(char c)
{
    return isDigit(c) || (c >= 'a' && c <= 'z') || c == '_';
}

// "sm_90=mma_64x64". The capability is 0 if the text has another form.
struct Pin
{
    int32_t capability{0};
    std::string_view tactic;

    explicit Pin(std::string_view text)
    {
        size_t const equals = text.find('=');
        if (text.substr(0, kGpu.size()) != kGpu || equals == std::string_view::npos)
        {
            return;
        }
        std::string_view const digits = text.substr(kGpu.size(), equals - kGpu.size());
        tactic = text.substr(equals + 1);
        if (digits.size() <= kMaxDigits && std::all_of(digits.begin(), digits.end(), isDigit) && !tactic.empty()
            && std::all_of(tactic.begin(), tactic.end(), isOfName))
        {
            for (char const digit : digits)
            {
                capability = capability * 10 + (digit - '0');
            }
        }
    }
};

// Calls `body` for every pin in turn, until it returns false.
template <typename Body>
void forEachPin(std::string_view pins, Body const& body)
{
    while (!pins.empty())
    {
        size_t const end = std::min(pins.find(';'), pins.size() - 1);
        std::string_view const text = pins.substr(0, pins[end] == ';' ? end : end + 1);
        if (!body(text, Pin{text}))
        {
            return;
        }
        pins.remove_prefix(end + 1);
    }
}

} // namespace

int32_t tacticOf(std::string_view name)
{
    for (int32_t number = 0; number < TRTKP_TACTIC_COUNT; ++number)
    {
        char const* const known = trtkpTacticName(number);
        if (known != nullptr && name == known)
        {
            return number;
        }
    }
    return -1;
}

int32_t unsplitOf(int32_t tactic)
{
    char const* const name = trtkpTacticName(tactic);
    std::string_view const text = name == nullptr ? "" : name;
    size_t const at = text.find(kSplit);
    return at == std::string_view::npos ? -1 : tacticOf(text.substr(0, at));
}

void checkPins(std::string_view pins)
{
    forEachPin(pins,
        [&](std::string_view text, Pin const& pin)
        {
            require(pin.capability > 0, "tactic has '", text, "', which is not of the form sm_90=NAME");
            require(pinnedFor(pins, pin.capability).data() == pin.tactic.data(), "tactic names sm_", pin.capability,
                " twice");
            return true;
        });
}

std::string_view pinnedFor(std::string_view pins, int32_t capability)
{
    std::string_view found;
    forEachPin(pins,
        [&](std::string_view, Pin const& pin)
        {
            bool const isIt = capability > 0 && pin.capability == capability;
            found = isIt ? pin.tactic : found;
            return !isIt;
        });
    return found;
}

} // namespace trtkp::glue
