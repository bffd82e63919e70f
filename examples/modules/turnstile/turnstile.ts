// A turnstile, not for XState but for the guest ABI (docs/guest-abi.md): AssemblyScript, compiled to a WASM module.
//
//   npm run build && machinehub deploy dist/turnstile.wasm
//
// A COIN unlocks it, a PUSH goes through; nobody within ten seconds, and it locks again.

const LOCK_AFTER_MS: i64 = 10_000;

let unlocked = false;
let visitors = 0;
let timer = 0; // the last one that was set; ids count up
let emitted = "";
let timersSet = "";
let timersCancelled = "";

// What the host reads must stay where it is until the next call, and so must what it wrote.
let input = new ArrayBuffer(0);
let output = new ArrayBuffer(0);

export function alloc(bytes: i32): usize {
  input = new ArrayBuffer(bytes);
  return changetype<usize>(input);
}

export function start(_at: usize, _bytes: i32, _nowMs: i64): u64 {
  return outbox();
}

export function step(_at: usize, bytes: i32, nowMs: i64): u64 {
  const text = String.UTF8.decodeUnsafe(changetype<usize>(input), bytes);
  emitted = timersSet = timersCancelled = "";
  if (text.startsWith("[2,"))
    lock(); // [2,seed,timer]: it came due
  else if (has(text, "COIN") && !unlocked) unlock(nowMs);
  else if (has(text, "PUSH") && unlocked) pass();
  else if (has(text, "KICK")) return answer('[0,{"message":"it does not move"}]'); // the event is refused, and nothing has happened
  return outbox();
}

export function describe(): u64 {
  return answer(`{"id":"turnstile","events":["COIN","KICK","PUSH"],"root":{"initial":"turnstile.locked","states":{
    "locked":{"id":"turnstile.locked","transitions":[{"event":"COIN","kind":"event","targets":["turnstile.unlocked"],"actions":[]}]},
    "unlocked":{"id":"turnstile.unlocked","transitions":[
      {"event":"PUSH","kind":"event","targets":["turnstile.locked"],"actions":["count"]},
      {"event":"after","kind":"after","delay":${LOCK_AFTER_MS.toString()},"targets":["turnstile.locked"],"actions":[]}]}}}}`);
}

function unlock(nowMs: i64): void {
  unlocked = true;
  timer++;
  timersSet = `[${timer},${(nowMs + LOCK_AFTER_MS).toString()}]`;
}

function pass(): void {
  visitors++;
  timersCancelled = timer.toString();
  emitted = `{"type":"passed","visitor":${visitors}}`;
  lock();
}

function lock(): void {
  unlocked = false;
}

/** Whether the event is of this type. A real machine would parse: the event is JSON, as the client wrote it. */
function has(text: string, type: string): bool {
  return text.includes(`"type":"${type}"`);
}

function outbox(): u64 {
  const value = unlocked ? "unlocked" : "locked";
  return answer(
    `[1,0,{"value":"${value}","context":{"visitors":${visitors}},"status":"active","tags":[]},[${emitted}],[${timersSet}],[${timersCancelled}]]`,
  );
}

/** Where a text lies, and how long it is: what every call answers. */
function answer(text: string): u64 {
  output = String.UTF8.encode(text);
  return ((changetype<usize>(output) as u64) << 32) | (output.byteLength as u64);
}
