/* Makes an image of what there is. The patched quickjs.c includes this file at its end, since it reads what is private there. */
#include "heap.h"

/* New atoms (the names of properties and variables) take free places of the table in the order of its free list, which
   is in the order in which names were given up. Here it is put in order, with room at the end: the names that a session
   makes then lie together, on few pages. */
static void js_freeze_atoms(JSRuntime *rt)
{
    const int room = 512;
    int i, first, used;

    if (rt->atom_size - rt->atom_count < room / 2) {
        int new_size = rt->atom_size + room;
        JSAtomStruct **table = js_realloc_rt(rt, rt->atom_array, sizeof(*table) * new_size);
        if (table) {
            for (i = rt->atom_size; i < new_size; i++)
                table[i] = atom_set_free(0);
            rt->atom_array = table;
            rt->atom_size = new_size;
        }
    }
    for (used = rt->atom_size; used > 1 && atom_is_free(rt->atom_array[used - 1]); used--)
        continue;
    first = 0;
    for (i = used - 1; i > 0; i--) {
        if (atom_is_free(rt->atom_array[i])) {
            rt->atom_array[i] = atom_set_free(first);
            first = i;
        }
    }
    for (i = rt->atom_size - 1; i >= used; i--) {
        rt->atom_array[i] = atom_set_free(first);
        first = i;
    }
    rt->atom_free_index = first;
}

/* Zeroes what is free in the arenas of small blocks. Nobody will ever take it, and zeroes are small when they are packed. */
static void js_clear_free_blocks(JSRuntime *rt)
{
    struct list_head *el;
    int i;

    for (i = 0; i < JS_ARENA_BLOCK_SIZE_COUNT; i++) {
        unsigned int size = arena_block_sizes[i];
        list_for_each(el, &rt->arena_state.free_arena_list[i]) {
            JSArena *arena = list_entry(el, JSArena, free_link);
            unsigned int at = arena->first_free_block;
            while (at != JS_ARENA_FREE_NIL) {
                JSMallocBlockHeader *block = arena_get_block(arena, at, size);
                at = block->u.free_next;
                memset(block, 0, size);
            }
        }
    }
}

/* From here on all objects that exist are the image's. The collector forgets them, and so does the allocator of small
   blocks: a session's first block of a size comes from an arena of its own. `heap_freeze` (heap.c) says where the image
   ends; the next call into the engine reads that. */
void JS_FreezeImage(JSRuntime *rt)
{
    int i;

    js_freeze_atoms(rt);
    js_clear_free_blocks(rt);
    init_list_head(&rt->gc_obj_list);
    for (i = 0; i < JS_ARENA_BLOCK_SIZE_COUNT; i++) {
        init_list_head(&rt->arena_state.arena_list[i]);
        init_list_head(&rt->arena_state.free_arena_list[i]);
    }
    js_is_frozen = true;
    heap_freeze();
}

/* For tests: collects cycles after every so many bytes. */
void JS_CollectAfter(JSRuntime *rt, size_t bytes)
{
    js_collect_after = bytes;
    rt->malloc_gc_threshold = 0;
}
