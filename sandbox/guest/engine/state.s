# The engine's variables that are no part of a memory: a checkpoint does not hold them, and a session cannot reach them.
# C has no way to name a WebAssembly global, so it goes through these functions, which wasm-opt inlines.

	.globaltype	fault, i32
	.globl	fault
fault:
	.globaltype	clock_ns, i64
	.globl	clock_ns
clock_ns:
	.globaltype	image_end_at, i32
	.globl	image_end_at
image_end_at:

	.section	.text.set_fault,"",@
	.globl	set_fault
	.type	set_fault,@function
set_fault:
	.functype	set_fault (i32) -> ()
	local.get	0
	global.set	fault
	end_function

	.section	.text.now_ns,"",@
	.globl	now_ns
	.type	now_ns,@function
now_ns:
	.functype	now_ns () -> (i64)
	global.get	clock_ns
	end_function

	.section	.text.set_now_ns,"",@
	.globl	set_now_ns
	.type	set_now_ns,@function
set_now_ns:
	.functype	set_now_ns (i64) -> ()
	local.get	0
	global.set	clock_ns
	end_function

	.section	.text.image_end,"",@
	.globl	image_end
	.type	image_end,@function
image_end:
	.functype	image_end () -> (i32)
	global.get	image_end_at
	end_function

	.section	.text.set_image_end,"",@
	.globl	set_image_end
	.type	set_image_end,@function
set_image_end:
	.functype	set_image_end (i32) -> ()
	local.get	0
	global.set	image_end_at
	end_function
