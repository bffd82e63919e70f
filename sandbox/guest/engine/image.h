/* The immortal image: what quickjs.patch makes QuickJS ask of an object before it writes to its header.

   A machine's image is the memory that the forge froze after it had loaded the machine. All of the machine's sessions
   share its pages copy-on-write. Everything below `image_end` belongs to it and lives for ever: its reference counts
   are neither read nor written, it is never freed, and the cycle collector does not look at it. A session therefore
   writes to a page of the image only where it really changes an object of it.

   Why this is right for the cycle collector: it looks for groups of objects that only hold each other, by taking away
   the references that come from objects in its list. Objects of the image are in no list, so a reference that one of
   them holds is never taken away, and what it leads to is kept, as with a reference from a stack frame.

   quickjs.c includes this file behind its own accessors of the header (JS_REF_COUNT and the like). */
#ifndef MACHINEHUB_IMAGE_H
#define MACHINEHUB_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

/* Where the image ends; 0 while one is made. A global of the module (state.s), so that it costs no load from memory.
   `const`, since no function that asks changes it while it runs: the compiler may ask once. */
__attribute__((const)) uint32_t image_end(void);

#define JS_IN_IMAGE(p) ((uint32_t)(uintptr_t)(p) < image_end())

/* One reference more. */
static inline void js_rc_inc(const void *p)
{
    if (!JS_IN_IMAGE(p))
        JS_REF_COUNT(p)++;
}

/* One reference less; true when it was the last. */
static inline bool js_rc_dec(const void *p)
{
    return !JS_IN_IMAGE(p) && --JS_REF_COUNT(p) <= 0;
}

/* Whether whoever asks holds the only reference, and so may change in place what others must not see changed. How many
   hold an object of the image is not known: others may. */
static inline bool js_rc_is_one(const void *p)
{
    return !JS_IN_IMAGE(p) && JS_REF_COUNT(p) == 1;
}

#endif
