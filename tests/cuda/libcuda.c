/* A stand-in for NVIDIA's driver library: what trtkp.cuda calls of it, on host memory.
 *
 * Work sent to a stream is done when the stream is synchronised. While a stream captures, its work goes into a graph.
 * The driver bindings ask cuGetProcAddress for everything, by names without version suffixes.
 *
 * It plays an L4 or, where TRTKP_STAND_IN_GPUS is 2, an L4 and an A100, of which CUDA_VISIBLE_DEVICES chooses.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_FOUND = 500, CAPTURE_UNSUPPORTED = 900 };

typedef struct Work { void* to; void const* from; size_t bytes; struct Event* event; } Work;
typedef struct List { Work* work; size_t count; } List;
typedef struct Stream { List list; List* captured; } Stream;
typedef struct Event { int happened; double at; } Event;

static __thread int contexts;
static double now;
static long allocated;

static int submit(Stream* stream, Work work)
{
    if (contexts == 0)
    {
        return INVALID_CONTEXT;
    }
    List* list = stream->captured != NULL ? stream->captured : &stream->list;
    list->work = realloc(list->work, (list->count + 1) * sizeof(Work));
    list->work[list->count++] = work;
    return OK;
}

int cuInit(unsigned flags) { return flags == 0 ? OK : INVALID_VALUE; }
int cuDriverGetVersion(int* version) { *version = 13000; return OK; }

/* The GPU of a number, -1 if the process sees none of that number. */
static int visible(int ordinal)
{
    char const* played = getenv("TRTKP_STAND_IN_GPUS");
    char const* chosen = getenv("CUDA_VISIBLE_DEVICES");
    int device = ordinal;
    if (chosen != NULL)
    {
        for (; ordinal > 0 && chosen != NULL; --ordinal)
        {
            chosen = strchr(chosen, ',');
            chosen = chosen == NULL ? NULL : chosen + 1;
        }
        device = chosen == NULL || *chosen == '\0' ? -1 : atoi(chosen);
    }
    return device < (played == NULL ? 1 : atoi(played)) ? device : -1;
}

int cuDeviceGetCount(int* count)
{
    for (*count = 0; visible(*count) >= 0; ++*count) {}
    return OK;
}

int cuDeviceGet(int* device, int ordinal)
{
    *device = visible(ordinal);
    return *device < 0 ? INVALID_DEVICE : OK;
}

int cuDeviceGetName(char* name, int size, int device)
{
    snprintf(name, size, "NVIDIA Stand-in %s", device == 0 ? "L4" : "A100");
    return OK;
}

int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 24ul << 30; return OK; }
int cuGetErrorName(int status, char const** name) { *name = "CUDA_ERROR_STAND_IN"; return OK; }

int cuDeviceGetAttribute(int* value, int attribute, int device)
{
    int const minor = device == 0 ? 9 : 0;
    *value = attribute == 75 ? 8 : attribute == 76 ? minor : attribute == 16 ? 58 : attribute == 38 ? 48 << 20 : 0;
    return OK;
}

int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &contexts; return OK; }
int cuCtxPushCurrent(void* context) { ++contexts; return OK; }
int cuCtxPopCurrent(void** context) { --contexts; return OK; }

int cuMemAlloc(uint64_t* address, size_t bytes)
{
    *address = (uint64_t) malloc(bytes);
    ++allocated;
    return contexts == 0 ? INVALID_CONTEXT : OK;
}

int cuMemFree(uint64_t address) { free((void*) address); --allocated; return OK; }
int cuMemHostAlloc(void** address, size_t bytes, unsigned flags) { ++allocated; *address = malloc(bytes); return OK; }
int cuMemFreeHost(void* address) { free(address); --allocated; return OK; }

int cuStreamCreate(Stream** stream, unsigned flags)
{
    *stream = calloc(1, sizeof(Stream));
    ++allocated;
    return flags == 1 ? OK : INVALID_VALUE; /* CU_STREAM_NON_BLOCKING is what we want */
}

int cuStreamDestroy(Stream* stream) { free(stream->list.work); free(stream); --allocated; return OK; }

int cuStreamSynchronize(Stream* stream)
{
    if (stream->captured != NULL)
    {
        return CAPTURE_UNSUPPORTED;
    }
    for (size_t i = 0; i < stream->list.count; ++i)
    {
        Work const* work = &stream->list.work[i];
        if (work->event != NULL)
        {
            work->event->happened = 1;
            work->event->at = ++now;
        }
        else
        {
            memcpy(work->to, work->from, work->bytes);
        }
    }
    stream->list.count = 0;
    return OK;
}

int cuStreamWaitEvent(Stream* stream, Event* event, unsigned flags) { return event != NULL ? OK : INVALID_VALUE; }
int cuEventCreate(Event** event, unsigned flags) { *event = calloc(1, sizeof(Event)); ++allocated; return OK; }
int cuEventDestroy(Event* event) { free(event); --allocated; return OK; }

int cuEventRecord(Event* event, Stream* stream)
{
    if ((uintptr_t) stream < 3) /* the legacy and the per-thread default stream */
    {
        event->happened = 1;
        return OK;
    }
    Work const work = {NULL, NULL, 0, event};
    return submit(stream, work);
}

int cuEventElapsedTime(float* ms, Event* start, Event* end)
{
    *ms = (float) (end->at - start->at);
    return start->happened && end->happened ? OK : INVALID_VALUE;
}

int cuMemcpyHtoDAsync(uint64_t to, void const* from, size_t bytes, Stream* stream)
{
    Work const work = {(void*) to, from, bytes, NULL};
    return submit(stream, work);
}

int cuMemcpyDtoHAsync(void* to, uint64_t from, size_t bytes, Stream* stream)
{
    Work const work = {to, (void const*) from, bytes, NULL};
    return submit(stream, work);
}

int cuStreamBeginCapture(Stream* stream, int mode)
{
    stream->captured = calloc(1, sizeof(List));
    ++allocated;
    return mode == 1 ? OK : INVALID_VALUE; /* CU_STREAM_CAPTURE_MODE_THREAD_LOCAL */
}

int cuStreamEndCapture(Stream* stream, List** graph)
{
    *graph = stream->captured;
    stream->captured = NULL;
    return *graph != NULL ? OK : INVALID_VALUE;
}

int cuGraphInstantiateWithFlags(List** executable, List* graph, unsigned long long flags)
{
    *executable = calloc(1, sizeof(List));
    ++allocated;
    (*executable)->count = graph->count;
    (*executable)->work = malloc(graph->count * sizeof(Work));
    memcpy((*executable)->work, graph->work, graph->count * sizeof(Work));
    return OK;
}

int cuGraphDestroy(List* graph) { free(graph->work); free(graph); --allocated; return OK; }
int cuGraphExecDestroy(List* graph) { return cuGraphDestroy(graph); }

int cuGraphLaunch(List* executable, Stream* stream)
{
    int status = OK;
    for (size_t i = 0; i < executable->count && status == OK; ++i)
    {
        status = submit(stream, executable->work[i]);
    }
    return status;
}

int cuGetProcAddress_v2(char const* symbol, void** function, int version, uint64_t flags, int* found)
{
    *function = dlsym(RTLD_DEFAULT, symbol);
    Dl_info here, there;
    if (*function != NULL && dladdr((void*) cuGetProcAddress_v2, &here) && dladdr(*function, &there)
        && strcmp(here.dli_fname, there.dli_fname) != 0)
    {
        *function = NULL;
    }
    if (found != NULL)
    {
        *found = *function != NULL ? 0 : 1;
    }
    return *function != NULL ? OK : NOT_FOUND;
}

int cuGetProcAddress(char const* symbol, void** function, int version, uint64_t flags, int* found)
{
    return cuGetProcAddress_v2(symbol, function, version, flags, found);
}

/* What is allocated and not given back. */
long trtkpStandInAllocated(void) { return allocated; }
