;; What the host calls, and what QuickJS would have asked of a host.
;;
;; build/engine.mjs appends this text to the disassembled quickjs.wasm. `$qjs_*` and `$wasm_*` are QuickJS's own
;; exports; `$host_*`, `$clock_time_get` and the like stand where it imported functions, so that the finished engine
;; imports its memory and nothing else: no function of the host can be reached from inside.

(global $clock_ns (mut i64) (i64.const 0))

;; Why the last call trapped. 0: the trap speaks for itself, 1: out of memory, 2: the answer does not fit into the
;; I/O area, 3: the prelude itself threw (it never should), 4: too many promise jobs.
(global $fault (export "fault") (mut i32) (i32.const 0))

;; --- what QuickJS imports -------------------------------------------------------------------------------------

(func $host_get_timezone_offset (param i32 i32) (result i32) (i32.const 0))
(func $host_interrupt (result i32) (i32.const 0))
(func $host_promise_rejection (param i32 i32 i32))
(func $host_module_normalize (param i32 i32) (result i32) (i32.const 0))
(func $host_module_load (param i32 i32) (result i32) (i32.const 0))
(func $host_call (param i32 i32 i32 i32 i32) (result i32) (unreachable))
(func $clock_time_get (param i32 i64) (param $at i32) (result i32)
  (i64.store (local.get $at) (global.get $clock_ns))
  (i32.const 0))
(func $fd_close (param i32) (result i32) (i32.const 8))
(func $fd_fdstat_get (param i32 i32) (result i32) (i32.const 8))
(func $fd_seek (param i32 i64 i32 i32) (result i32) (i32.const 8))
(func $fd_write (param i32 i32 i32 i32) (result i32) (i32.const 8))
(func $random_get (param $at i32) (param $size i32) (result i32)
  (call $fill (local.get $at) (i32.const 0) (local.get $size))
  (i32.const 0))

;; Every memory.grow of QuickJS is sent here. A failed one ends the turn at once: were it reported to JavaScript as an
;; exception, the machine could catch it and go on with a half-made change.
(func $grow (param $pages i32) (result i32)
  (local $before i32)
  (local.set $before (memory.grow (local.get $pages)))
  (if (i32.eq (local.get $before) (i32.const -1))
    (then (global.set $fault (i32.const 1)) (unreachable)))
  (local.get $before))

;; memory.copy and memory.fill of QuickJS are sent here too. The runtime would run them in native code, where the watchdog's
;; way of ending a turn (it takes the memory away, see sandbox/engine.py) would end the process. Eight bytes at a time; most
;; copies are a few dozen bytes, for which this is no slower.
(func $copy (param $to i32) (param $from i32) (param $size i32)
  (local $at i32)
  (if (i32.and (i32.gt_u (local.get $to) (local.get $from))
               (i32.lt_u (i32.sub (local.get $to) (local.get $from)) (local.get $size)))
    (then ;; the target overlaps the end of the source: from the back
      (local.set $at (local.get $size))
      (block $words_done
        (loop $words
          (br_if $words_done (i32.lt_u (local.get $at) (i32.const 8)))
          (local.set $at (i32.sub (local.get $at) (i32.const 8)))
          (i64.store align=1 (i32.add (local.get $to) (local.get $at))
            (i64.load align=1 (i32.add (local.get $from) (local.get $at))))
          (br $words)))
      (block $bytes_done
        (loop $bytes
          (br_if $bytes_done (i32.eqz (local.get $at)))
          (local.set $at (i32.sub (local.get $at) (i32.const 1)))
          (i32.store8 (i32.add (local.get $to) (local.get $at))
            (i32.load8_u (i32.add (local.get $from) (local.get $at))))
          (br $bytes))))
    (else
      (block $words_done
        (loop $words
          (br_if $words_done (i32.lt_u (i32.sub (local.get $size) (local.get $at)) (i32.const 8)))
          (i64.store align=1 (i32.add (local.get $to) (local.get $at))
            (i64.load align=1 (i32.add (local.get $from) (local.get $at))))
          (local.set $at (i32.add (local.get $at) (i32.const 8)))
          (br $words)))
      (block $bytes_done
        (loop $bytes
          (br_if $bytes_done (i32.ge_u (local.get $at) (local.get $size)))
          (i32.store8 (i32.add (local.get $to) (local.get $at))
            (i32.load8_u (i32.add (local.get $from) (local.get $at))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br $bytes))))))

(func $fill (param $to i32) (param $byte i32) (param $size i32)
  (local $at i32) (local $word i64)
  (local.set $word
    (i64.mul (i64.extend_i32_u (i32.and (local.get $byte) (i32.const 255))) (i64.const 0x0101010101010101)))
  (block $words_done
    (loop $words
      (br_if $words_done (i32.lt_u (i32.sub (local.get $size) (local.get $at)) (i32.const 8)))
      (i64.store align=1 (i32.add (local.get $to) (local.get $at)) (local.get $word))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br $words)))
  (block $bytes_done
    (loop $bytes
      (br_if $bytes_done (i32.ge_u (local.get $at) (local.get $size)))
      (i32.store8 (i32.add (local.get $to) (local.get $at)) (local.get $byte))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $bytes))))

;; --- building an image ----------------------------------------------------------------------------------------

;; boot(now_ns, stack_bytes): a fresh QuickJS in a fresh memory, not collecting cycles yet. 0 when it worked.
(func (export "boot") (param $now_ns i64) (param $stack i32) (result i32)
  (global.set $clock_ns (local.get $now_ns))
  (call $_initialize)
  (if (call $qjs_init) (then (return (i32.const 1))))
  (call $qjs_set_max_stack_size (local.get $stack))
  (call $qjs_set_gc_threshold (i32.const -1))
  (i32.const 0))

(func (export "alloc") (param $size i32) (result i32) (call $wasm_malloc (local.get $size)))
(func (export "free") (param $at i32) (call $wasm_free (local.get $at)))
;; settle_heap(slack, usage): collects cycles now, and lets QuickJS collect again once `slack` more bytes are in use.
;; (Its threshold is a total, not a difference; left alone, every new session would begin with a collection.)
(func (export "settle_heap") (param $slack i32) (param $usage i32)
  (call $qjs_run_gc)
  (call $qjs_compute_memory_usage (local.get $usage))
  (call $qjs_set_gc_threshold
    (i32.add (local.get $slack) (i32.wrap_i64 (i64.load (local.get $usage))))))

;; What `find_eval_slot` in sandbox/forge.py uses to learn where a context keeps its pointer to the parser.
(func (export "context") (result i32) (call $qjs_get_context_ptr))
(func (export "raw_context") (result i32) (call $JS_NewContextRaw (call $qjs_get_runtime_ptr)))
(func (export "add_parser") (param $context i32) (drop (call $JS_AddIntrinsicEval (local.get $context))))
(func (export "free_context") (param $context i32) (call $JS_FreeContext (local.get $context)))

;; set_clock(now_ns): the time that the code of this call sees.
(func (export "set_clock") (param $now_ns i64) (global.set $clock_ns (local.get $now_ns)))

;; evaluate(code, length, name) -> value. A thrown exception is a negative handle to what was thrown.
(func (export "evaluate") (param $code i32) (param $length i32) (param $name i32) (result i32)
  (call $settle (call $qjs_eval (local.get $code) (local.get $length) (local.get $name) (i32.const 0))))

;; compile(code, length, name, length_out) -> bytecode without source and debug information; 0 when it does not parse.
(func (export "compile") (param $code i32) (param $length i32) (param $name i32) (param $length_out i32) (result i32)
  (call $qjs_compile (local.get $code) (local.get $length) (local.get $name) (i32.const 0) (i32.const 48) (local.get $length_out)))

;; evaluate_bytecode(bytecode, length) -> value, as `evaluate`. For the prelude alone: a stranger's bytecode is never read.
(func (export "evaluate_bytecode") (param $bytecode i32) (param $length i32) (result i32)
  (call $settle (call $qjs_eval_bytecode (local.get $bytecode) (local.get $length))))

;; property(object, name) -> value
(func (export "property") (param $object i32) (param $name i32) (result i32)
  (call $qjs_get_prop_string (local.get $object) (local.get $name)))

(func $settle (param $value i32) (result i32)
  (if (call $qjs_is_exception (local.get $value))
    (then (return (i32.sub (i32.const 0) (call $qjs_get_exception)))))
  (local.get $value))

;; call_with_value(function, argument, io, io_bytes) -> length of the string it returned, now at io.
(func $call_with_value (export "call_with_value")
  (param $function i32) (param $argument i32) (param $io i32) (param $io_bytes i32) (result i32)
  (local $nothing i32) (local $result i32)
  (local.set $nothing (call $qjs_get_undefined))
  (i32.store (local.get $io) (local.get $argument))
  (local.set $result
    (call $qjs_call (local.get $function) (local.get $nothing) (i32.const 1) (local.get $io)))
  (call $qjs_free_value (local.get $nothing))
  (call $must_not_throw (local.get $result))
  (call $drain (i32.const -1))
  (call $answer (local.get $result) (local.get $io) (local.get $io_bytes)))

;; --- a turn ---------------------------------------------------------------------------------------------------

;; step(step, collect, io, io_bytes, length, now_ns, jobs) -> length of the outbox, now at io.
;; Hands the input at io to `step`, runs the promise jobs until none is left (at most `jobs`), then asks `collect` for the outbox.
(func (export "step")
  (param $step i32) (param $collect i32) (param $io i32) (param $io_bytes i32) (param $length i32) (param $now_ns i64) (param $jobs i32)
  (result i32)
  (local $nothing i32) (local $argument i32) (local $result i32)
  (global.set $clock_ns (local.get $now_ns))
  (local.set $nothing (call $qjs_get_undefined))
  (local.set $argument (call $qjs_new_string (local.get $io) (local.get $length)))
  (i32.store (local.get $io) (local.get $argument))
  (local.set $result
    (call $qjs_call (local.get $step) (local.get $nothing) (i32.const 1) (local.get $io)))
  (call $must_not_throw (local.get $result))
  (call $qjs_free_value (local.get $result))
  (call $qjs_free_value (local.get $argument))
  (call $drain (local.get $jobs))
  (local.set $result
    (call $qjs_call (local.get $collect) (local.get $nothing) (i32.const 0) (i32.const 0)))
  (call $qjs_free_value (local.get $nothing))
  (call $must_not_throw (local.get $result))
  (call $answer (local.get $result) (local.get $io) (local.get $io_bytes)))

;; Promise jobs until none is left. A job that throws has nobody to tell; the next one runs. More than `left` of them, as an
;; unsigned number, end the turn.
(func $drain (param $left i32)
  (local $state i32)
  (block $done
    (loop $again
      (local.set $state (call $qjs_execute_pending_job))
      (br_if $done (i32.eqz (local.get $state)))
      (if (i32.lt_s (local.get $state) (i32.const 0))
        (then (call $qjs_free_value (call $qjs_get_exception))))
      (if (i32.eqz (local.get $left))
        (then (global.set $fault (i32.const 4)) (unreachable)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br $again))))

(func $must_not_throw (param $value i32)
  (if (call $qjs_is_exception (local.get $value))
    (then (global.set $fault (i32.const 3)) (unreachable))))

;; Copies the string `value` to the I/O area and frees it.
(func $answer (param $value i32) (param $io i32) (param $io_bytes i32) (result i32)
  (local $text i32) (local $length i32)
  (local.set $text (call $qjs_get_string_len (local.get $value) (local.get $io)))
  (if (i32.eqz (local.get $text))
    (then (global.set $fault (i32.const 3)) (unreachable)))
  (local.set $length (i32.load (local.get $io)))
  (if (i32.gt_u (local.get $length) (local.get $io_bytes))
    (then (global.set $fault (i32.const 2)) (unreachable)))
  (call $copy (local.get $io) (local.get $text) (local.get $length))
  (call $qjs_free_cstring (local.get $text))
  (call $qjs_free_value (local.get $value))
  (local.get $length))
