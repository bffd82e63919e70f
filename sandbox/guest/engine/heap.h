/* The allocator (heap.c), beyond malloc and its kin. */
#ifndef MACHINEHUB_HEAP_H
#define MACHINEHUB_HEAP_H

#include <stdint.h>

/* Leaves everything that is allocated where it is, for good: it is never freed, and nothing new is put between. The
   heap goes on from a page of its own. */
void heap_freeze(void);

/* Where what was frozen ends; 0 before. */
uint32_t heap_frozen_end(void);

/* Ends the turn: there is no more memory. */
_Noreturn void out_of_memory(void);

#endif
