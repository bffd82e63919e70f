/* malloc for the guest: two-level segregated fit over one heap that grows upwards.

   After M. Masmano, I. Ripoll, A. Crespo, J. Real: "TLSF: a new dynamic memory allocator for real-time systems" (2004).
   All operations take constant time, but for memory that must be asked for. It is deterministic, and all of its state
   is in the guest's memory: a session that is thawed elsewhere allocates the same addresses.

   QuickJS asks for arenas of small blocks and for single large ones; the allocator that comes with wasi-libc rounds
   these up to powers of two, which costs a session pages. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "heap.h"

#define WASM_PAGE 65536u
#define OS_PAGE 4096u
#define HEADER 8u
#define BLOCK_MIN 24u
#define REQUEST_MAX 0x7fff0000u
#define FREE 1u

/* A block begins with its header; `next` and `previous` lie in the user's part and count only while it is free. */
typedef struct Block {
    uint32_t before; /* size of the block in front of this one; 0: none */
    uint32_t size;   /* of this block with its header, a multiple of 8; the lowest bit says that it is free */
    struct Block *next, *previous;
} Block;

#define LEVELS 28
#define SUBLEVELS 8

/* Free blocks by size: level is the power of two below it (from 16 on), sublevel an eighth of that power. */
static struct {
    uint32_t levels; /* bit: a sublevel of this level has blocks */
    uint32_t last;   /* size of the block that ends at `top`; 0: none */
    uint32_t top;    /* where the heap ends so far; 0: it has not begun */
    uint32_t end;    /* where the memory ends */
    uint8_t sublevels[LEVELS]; /* bit: this sublevel has blocks */
    Block *bins[LEVELS][SUBLEVELS];
} heap;

static uint32_t frozen_end;

extern unsigned char __heap_base; /* from the linker: where data and stack end */

static inline uint32_t address(const void *p) { return (uint32_t)(uintptr_t)p; }
static inline uint32_t size_of(const Block *block) { return block->size & ~FREE; }
static inline Block *following(const Block *block) { return (Block *)((char *)block + size_of(block)); }
static inline Block *block_of(const void *p) { return (Block *)((char *)p - HEADER); }
static inline void *user_part(Block *block) { return (char *)block + HEADER; }

static inline void find_bin(uint32_t size, int *level, int *sublevel)
{
    int log = 31 - __builtin_clz(size);
    *level = log - 4;
    *sublevel = (size >> (log - 3)) & (SUBLEVELS - 1);
}

/* Takes a free block out of its bin. */
static void take(Block *block)
{
    int level, sublevel;

    if (block->next)
        block->next->previous = block->previous;
    if (block->previous) {
        block->previous->next = block->next;
    } else {
        find_bin(size_of(block), &level, &sublevel);
        if (!(heap.bins[level][sublevel] = block->next)) {
            heap.sublevels[level] &= ~(1u << sublevel);
            if (!heap.sublevels[level])
                heap.levels &= ~(1u << level);
        }
    }
    block->size &= ~FREE;
}

/* Puts a block into its bin. */
static void give(Block *block)
{
    int level, sublevel;

    find_bin(block->size, &level, &sublevel);
    block->size |= FREE;
    block->previous = NULL;
    block->next = heap.bins[level][sublevel];
    if (block->next)
        block->next->previous = block;
    heap.bins[level][sublevel] = block;
    heap.sublevels[level] |= 1u << sublevel;
    heap.levels |= 1u << level;
}

/* Tells what follows a block of its size, be it a block or the end of the heap. */
static void announce(const Block *block)
{
    Block *after = following(block);

    if (address(after) == heap.top)
        heap.last = size_of(block);
    else
        after->before = size_of(block);
}

/* Cuts a block that is in no bin down to `need` bytes, and makes what is left one that is free. */
static void cut(Block *block, uint32_t need)
{
    uint32_t left = block->size - need;
    Block *rest, *after = following(block);

    if (left < BLOCK_MIN)
        return;
    block->size = need;
    if (address(after) == heap.top) {
        heap.top = address(block) + need;
        heap.last = need;
        return;
    }
    rest = following(block);
    rest->before = need;
    rest->size = left;
    if (after->size & FREE) {
        take(after);
        rest->size += after->size;
    }
    announce(rest);
    give(rest);
}

static inline uint32_t needed(size_t size)
{
    uint32_t need = (size + HEADER + 7) & ~7u;
    return need < BLOCK_MIN ? BLOCK_MIN : need;
}

/* A free block of at least `need` bytes; NULL when there is none. It looks in bins of which every block fits. */
static Block *find(uint32_t need)
{
    int level, sublevel;
    uint32_t levels, sublevels;

    find_bin(need + (1u << (31 - __builtin_clz(need) - 3)) - 1, &level, &sublevel);
    sublevels = heap.sublevels[level] & (~0u << sublevel);
    if (!sublevels) {
        levels = heap.levels & (~0u << (level + 1));
        if (!levels)
            return NULL;
        level = __builtin_ctz(levels);
        sublevels = heap.sublevels[level];
    }
    return heap.bins[level][__builtin_ctz(sublevels)];
}

/* Sees to it that the memory reaches to `to`. A growth that is refused ends the turn: were it reported to JavaScript
   as an exception, the machine could catch it and go on with a half-made change. */
static void reach(uint32_t to)
{
    uint32_t pages;

    if (to <= heap.end)
        return;
    pages = (to - heap.end + WASM_PAGE - 1) / WASM_PAGE;
    if (__builtin_wasm_memory_grow(0, pages) == (size_t)-1)
        out_of_memory();
    heap.end += pages * WASM_PAGE;
}

void *malloc(size_t size)
{
    uint32_t need;
    Block *block;

    if (size > REQUEST_MAX)
        out_of_memory();
    need = needed(size);
    block = find(need);
    if (block) {
        take(block);
        cut(block, need);
        return user_part(block);
    }
    if (!heap.top) {
        heap.top = (address(&__heap_base) + 7) & ~7u;
        heap.end = __builtin_wasm_memory_size(0) * WASM_PAGE;
    }
    if (need > UINT32_MAX - heap.top)
        out_of_memory();
    reach(heap.top + need);
    block = (Block *)(uintptr_t)heap.top;
    block->before = heap.last;
    block->size = need;
    heap.top += need;
    heap.last = need;
    return user_part(block);
}

void free(void *p)
{
    Block *block, *after, *before;

    if (address(p) <= frozen_end) /* NULL too */
        return;
    block = block_of(p);
    after = following(block);
    if (block->before) {
        before = (Block *)((char *)block - block->before);
        if (before->size & FREE) {
            take(before);
            before->size += block->size;
            block = before;
        }
    }
    if (address(after) == heap.top) {
        heap.top = address(block);
        heap.last = block->before;
        return;
    }
    if (after->size & FREE) {
        take(after);
        block->size += after->size;
    }
    announce(block);
    give(block);
}

void *calloc(size_t count, size_t size)
{
    void *p;

    if (size && count > REQUEST_MAX / size)
        out_of_memory();
    p = malloc(count * size);
    return memset(p, 0, count * size);
}

/* Grows a block where it lies; false when what follows is in the way. */
static int grow(Block *block, uint32_t need)
{
    Block *after = following(block);

    if (address(after) == heap.top) {
        if (need > UINT32_MAX - address(block))
            out_of_memory();
        reach(address(block) + need);
        block->size = need;
        heap.top = address(block) + need;
        heap.last = need;
        return 1;
    }
    if (!(after->size & FREE) || block->size + size_of(after) < need)
        return 0;
    take(after);
    block->size += after->size;
    announce(block);
    cut(block, need);
    return 1;
}

void *realloc(void *p, size_t size)
{
    Block *block;
    uint32_t need;
    void *copy;

    if (!p)
        return malloc(size);
    if (size > REQUEST_MAX)
        out_of_memory();
    block = block_of(p);
    need = needed(size);
    if (address(p) > frozen_end) {
        if (need <= block->size) {
            cut(block, need);
            return p;
        }
        if (grow(block, need))
            return p;
    } else if (need <= block->size) {
        return p;
    }
    copy = malloc(size);
    memcpy(copy, p, block->size - HEADER);
    free(p);
    return copy;
}

size_t malloc_usable_size(void *p) { return p ? size_of(block_of(p)) - HEADER : 0; }

void heap_freeze(void)
{
    uint32_t top = (heap.top + OS_PAGE - 1) & ~(OS_PAGE - 1), end;
    Block *block, *next;
    int level, sublevel;

    /* What is free will never be taken; zeroes are small when the image is packed. */
    for (level = 0; level < LEVELS; level++) {
        for (sublevel = 0; sublevel < SUBLEVELS; sublevel++) {
            for (block = heap.bins[level][sublevel]; block; block = next) {
                next = block->next;
                memset(user_part(block), 0, size_of(block) - HEADER);
            }
        }
    }
    reach(top);
    end = heap.end;
    memset(&heap, 0, sizeof heap);
    heap.top = frozen_end = top;
    heap.end = end;
}

uint32_t heap_frozen_end(void) { return frozen_end; }
