/* What a C program expects of the system it runs on, for an engine that runs on none: it imports its memory and nothing
   else, so that no function of the host can be reached from inside. */
#include <stddef.h>
#include <stdint.h>
#include <wasi/api.h>
#include "engine.h"
#include "heap.h"

/* What wasi-libc asks of the system. There are no files, and the clock stands still during a turn. */
int close(int fd) { return -1; }

__wasi_errno_t __wasi_fd_fdstat_get(__wasi_fd_t fd, __wasi_fdstat_t *stat) { return __WASI_ERRNO_BADF; }

__wasi_errno_t __wasi_fd_seek(__wasi_fd_t fd, __wasi_filedelta_t offset, __wasi_whence_t whence, __wasi_filesize_t *at)
{
    return __WASI_ERRNO_BADF;
}

__wasi_errno_t __wasi_fd_write(__wasi_fd_t fd, const __wasi_ciovec_t *parts, size_t count, __wasi_size_t *written)
{
    return __WASI_ERRNO_BADF;
}

__wasi_errno_t __wasi_clock_time_get(__wasi_clockid_t clock, __wasi_timestamp_t precision, __wasi_timestamp_t *time)
{
    *time = now_ns();
    return __WASI_ERRNO_SUCCESS;
}

_Noreturn void out_of_memory(void) { fail(OUT_OF_MEMORY); }

_Noreturn void fail(int32_t fault)
{
    set_fault(fault);
    __builtin_trap();
}

/* memcpy and its kin. Those of wasi-libc are instructions that the runtime carries out in native code, where the
   watchdog's way to end a turn, which takes the memory away, would end the process. Eight bytes at a time; most copies
   are a few dozen bytes, for which this is no slower. `volatile` would cost; the flag -fno-builtin for this file keeps
   the compiler from making calls of memcpy out of these loops. */
typedef uint64_t Word __attribute__((aligned(1), may_alias));

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    char *t = to;
    const char *f = from;

    for (; size >= 8; size -= 8, t += 8, f += 8)
        *(Word *)t = *(const Word *)f;
    for (; size; size--)
        *t++ = *f++;
    return to;
}

void *memmove(void *to, const void *from, size_t size)
{
    char *t = (char *)to + size;
    const char *f = (const char *)from + size;

    if ((uintptr_t)to - (uintptr_t)from >= size)
        return memcpy(to, from, size);
    while (size >= 8) {
        size -= 8, t -= 8, f -= 8;
        *(Word *)t = *(const Word *)f;
    }
    for (; size; size--)
        *--t = *--f;
    return to;
}

void *memset(void *to, int byte, size_t size)
{
    char *t = to;
    uint64_t word = (uint8_t)byte * 0x0101010101010101ull;

    for (; size >= 8; size -= 8, t += 8)
        *(Word *)t = word;
    for (; size; size--)
        *t++ = (char)byte;
    return to;
}
