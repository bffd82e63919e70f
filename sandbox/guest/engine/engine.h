/* The engine's own parts, for each other. */
#ifndef MACHINEHUB_ENGINE_H
#define MACHINEHUB_ENGINE_H

#include <stdint.h>

/* Why a call trapped, in the exported global "fault", which the host reads (sandbox/traps.py). 0: the trap speaks for
   itself. */
enum {
    OUT_OF_MEMORY = 1,
    ANSWER_TOO_LARGE = 2, /* it does not fit into the I/O area */
    PRELUDE_THREW = 3,    /* it never should */
    TOO_MANY_JOBS = 4,
};

/* Traps, for this reason. */
_Noreturn void fail(int32_t fault);

/* Variables outside of the memory (state.s). */
void set_fault(int32_t fault);
int64_t now_ns(void);
void set_now_ns(int64_t ns);
void set_image_end(uint32_t at);

#endif
