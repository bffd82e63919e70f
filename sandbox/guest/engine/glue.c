/* What the host calls. sandbox/engine.py makes the calls.

   A JavaScript value is told to the host as a handle: the address of a cell of eight bytes that holds it. */
#include <stdlib.h>
#include <string.h>
#include "quickjs.h"
#include "engine.h"
#include "heap.h"

#define EXPORT(name) __attribute__((export_name(#name))) name

/* Strips source text and debug information from bytecode. */
#define BYTECODE_FLAGS (JS_WRITE_OBJ_BYTECODE | JS_WRITE_OBJ_STRIP_SOURCE | JS_WRITE_OBJ_STRIP_DEBUG)

void JS_FreezeImage(JSRuntime *rt); /* freeze.h */
void JS_CollectAfter(JSRuntime *rt, size_t bytes);
void _initialize(void);             /* wasi-libc */

static JSRuntime *rt;
static JSContext *ctx;

static JSValue *handle_of(JSValue value)
{
    JSValue *cell = malloc(sizeof(JSValue));
    *cell = value;
    return cell;
}

/* Every call that can come to an object begins with this: an object of the image must not be mistaken for one of the
   session's own. */
static void enter(void) { set_image_end(heap_frozen_end()); }

/* --- building an image ------------------------------------------------------------------------------------------ */

/* A fresh QuickJS in a fresh memory, not collecting cycles yet. 0 when it worked. */
int32_t EXPORT(boot)(int64_t time_ns, uint32_t stack_bytes)
{
    set_now_ns(time_ns);
    _initialize();
    if (rt || !(rt = JS_NewRuntime()) || !(ctx = JS_NewContext(rt)))
        return 1;
    JS_SetMaxStackSize(rt, stack_bytes);
    JS_SetGCThreshold(rt, -1);
    return 0;
}

void *EXPORT(alloc)(uint32_t size) { return malloc(size); }

__attribute__((export_name("free"))) void release(void *p) { free(p); }

/* The time that the code of this call sees. */
void EXPORT(set_clock)(int64_t time_ns) { set_now_ns(time_ns); }

/* Collects cycles now, and again once `slack` more bytes are in use. What is left is the image. (QuickJS's threshold is
   a total, not a difference; left alone, every new session would begin with a collection.) */
void EXPORT(settle_heap)(uint32_t slack)
{
    JSMemoryUsage usage;

    JS_RunGC(rt);
    JS_FreezeImage(rt);
    enter();
    JS_ComputeMemoryUsage(rt, &usage);
    JS_SetGCThreshold(rt, usage.malloc_size + slack);
}

/* For tests: collects cycles now and whenever so many bytes more are in use. */
void EXPORT(collect_after)(uint32_t bytes) { JS_CollectAfter(rt, bytes); }

/* These let `_find_eval_slot` in sandbox/forge.py learn where a context keeps its pointer to the parser. */
JSContext *EXPORT(context)(void) { return ctx; }
JSContext *EXPORT(raw_context)(void) { return JS_NewContextRaw(rt); }
void EXPORT(add_parser)(JSContext *context) { JS_AddIntrinsicEval(context); }
void EXPORT(free_context)(JSContext *context) { JS_FreeContext(context); }

/* The handle of a value; of an exception, the negative handle of what was thrown. */
static int32_t settled(JSValue value)
{
    if (JS_IsException(value))
        return -(int32_t)(intptr_t)handle_of(JS_GetException(ctx));
    return (int32_t)(intptr_t)handle_of(value);
}

/* Evaluates a script; a zero stands behind `code`, which `length` does not count. */
int32_t EXPORT(evaluate)(const char *code, uint32_t length, const char *name)
{
    enter();
    return settled(JS_Eval(ctx, code, length, name, JS_EVAL_TYPE_GLOBAL));
}

/* Bytecode of a script, without source and debug information; its length comes to `length_out`. 0: it does not parse. */
uint8_t *EXPORT(compile)(const char *code, uint32_t length, const char *name, uint32_t *length_out)
{
    JSValue function;
    size_t size = 0;
    uint8_t *bytes;

    function = JS_Eval(ctx, code, length, name, JS_EVAL_TYPE_GLOBAL | JS_EVAL_FLAG_COMPILE_ONLY);
    if (JS_IsException(function))
        return NULL;
    bytes = JS_WriteObject(ctx, &size, function, BYTECODE_FLAGS);
    *length_out = size;
    return bytes;
}

/* Evaluates bytecode, as `evaluate`. For the prelude alone: a stranger's bytecode is never read. */
int32_t EXPORT(evaluate_bytecode)(const uint8_t *bytecode, uint32_t length)
{
    JSValue function = JS_ReadObject(ctx, bytecode, length, JS_READ_OBJ_BYTECODE);

    if (JS_IsException(function))
        return settled(function);
    return settled(JS_EvalFunction(ctx, function));
}

JSValue *EXPORT(property)(const JSValue *object, const char *name)
{
    return handle_of(JS_GetPropertyStr(ctx, *object, name));
}

/* Promises that are rejected while nobody listens, and those that somebody listens to after all: `function`, of the
   prelude, is told (promise, reason, whether somebody listens). */
static void tell_rejection(JSContext *context, JSValueConst promise, JSValueConst reason, bool is_handled, void *opaque)
{
    JSValueConst arguments[3] = {promise, reason, JS_NewBool(context, is_handled)};
    JSValue result = JS_Call(context, *(JSValue *)opaque, JS_UNDEFINED, 3, arguments);

    if (JS_IsException(result)) /* no memory or no stack is left: the turn ends of that */
        result = JS_GetException(context);
    JS_FreeValue(context, result);
}

void EXPORT(track_rejections)(JSValue *function) { JS_SetHostPromiseRejectionTracker(rt, tell_rejection, function); }

/* --- a turn ----------------------------------------------------------------------------------------------------- */

static JSValue call(JSValue function, int count, JSValue *arguments)
{
    JSValue result = JS_Call(ctx, function, JS_UNDEFINED, count, arguments);

    if (JS_IsException(result))
        fail(PRELUDE_THREW);
    return result;
}

/* Runs promise jobs until none is left. A job that throws has nobody to tell; the next one runs. More than `left` of
   them end the turn. */
static void drain(uint32_t left)
{
    JSContext *of;
    int state;

    for (; (state = JS_ExecutePendingJob(rt, &of)) != 0; left--) {
        if (state < 0)
            JS_FreeValue(ctx, JS_GetException(ctx));
        if (!left)
            fail(TOO_MANY_JOBS);
    }
}

/* Copies a string to the I/O area and frees it; its length in bytes of UTF-8. */
static uint32_t answer(JSValue value, char *io, uint32_t io_bytes)
{
    size_t length;
    const char *text = JS_ToCStringLen(ctx, &length, value);

    if (!text)
        fail(PRELUDE_THREW);
    if (length > io_bytes)
        fail(ANSWER_TOO_LARGE);
    memcpy(io, text, length);
    JS_FreeCString(ctx, text);
    JS_FreeValue(ctx, value);
    return length;
}

/* Calls a function of the prelude with a value; the string that it returns comes to `io`. Returns the length. */
uint32_t EXPORT(call_with_value)(const JSValue *function, JSValue *argument, char *io, uint32_t io_bytes)
{
    JSValue result;

    enter();
    result = call(*function, 1, argument);
    drain(UINT32_MAX);
    return answer(result, io, io_bytes);
}

/* Hands the input at `io` to the prelude's `step`, runs the promise jobs (at most `jobs`), then asks `collect` for the
   outbox, which comes to `io`. Returns its length. */
uint32_t EXPORT(step)(const JSValue *step, const JSValue *collect, char *io, uint32_t io_bytes, uint32_t length,
                      int64_t time_ns, uint32_t jobs)
{
    JSValue input;

    enter();
    set_now_ns(time_ns);
    input = JS_NewStringLen(ctx, io, length);
    if (JS_IsException(input))
        fail(PRELUDE_THREW);
    JS_FreeValue(ctx, call(*step, 1, &input));
    JS_FreeValue(ctx, input);
    drain(jobs);
    return answer(call(*collect, 0, NULL), io, io_bytes);
}
