#include "build_id.h"

#include <cstring>
#include <link.h>

namespace trtkp::glue
{
namespace
{

size_t aligned(size_t size)
{
    return (size + 3) / 4 * 4;
}

std::string hexadecimal(unsigned char const* bytes, size_t count)
{
    char constexpr digits[] = "0123456789abcdef";
    std::string text;
    for (size_t i = 0; i < count; ++i)
    {
        text += {digits[bytes[i] >> 4], digits[bytes[i] & 15]};
    }
    return text;
}

// The build ID among the notes of a segment; empty if it is not there.
std::string fromNotes(unsigned char const* at, unsigned char const* end)
{
    while (at + sizeof(ElfW(Nhdr)) <= end)
    {
        ElfW(Nhdr) note;
        std::memcpy(&note, at, sizeof(note));
        unsigned char const* const name = at + sizeof(note);
        unsigned char const* const content = name + aligned(note.n_namesz);
        bool const isGnu = note.n_namesz == sizeof("GNU") && std::memcmp(name, "GNU", sizeof("GNU")) == 0;
        if (isGnu && note.n_type == NT_GNU_BUILD_ID)
        {
            return hexadecimal(content, note.n_descsz);
        }
        at = content + aligned(note.n_descsz);
    }
    return {};
}

// Callback of dl_iterate_phdr: finds the build ID of the loaded object that contains this function.
int ofThisObject(dl_phdr_info* info, size_t, void* found)
{
    auto const here = reinterpret_cast<ElfW(Addr)>(&ofThisObject);
    bool isHere = false;
    std::string id;
    for (int i = 0; i < info->dlpi_phnum; ++i)
    {
        ElfW(Phdr) const& segment = info->dlpi_phdr[i];
        ElfW(Addr) const first = info->dlpi_addr + segment.p_vaddr;
        isHere = isHere || (segment.p_type == PT_LOAD && here >= first && here < first + segment.p_memsz);
        if (segment.p_type == PT_NOTE && id.empty())
        {
            auto const* const notes = reinterpret_cast<unsigned char const*>(first);
            id = fromNotes(notes, notes + segment.p_memsz);
        }
    }
    if (isHere)
    {
        *static_cast<std::string*>(found) = id;
    }
    return isHere ? 1 : 0;
}

} // namespace

std::string buildId()
{
    std::string id;
    dl_iterate_phdr(ofThisObject, &id);
    return id.empty() ? "unknown" : id;
}

} // namespace trtkp::glue
