// Randomness that the host can replay: every number comes from seeds that arrive with the turns and are recorded.
//
// sfc32 (Chris Doty-Humphrey's Small Fast Counter, from PractRand). A turn that draws mixes its seed into the state rather
// than replacing it, so what a machine draws depends on all such turns so far. Not for secrets: 53 bits enter a turn.

let a = 0x9e3779b9,
  b = 0x243f6a88,
  c = 0xb7e15162,
  counter = 1;

function next(): number {
  const t = (((a + b) | 0) + counter) | 0;
  counter = (counter + 1) | 0;
  a = b ^ (b >>> 9);
  b = (c + (c << 3)) | 0;
  c = (c << 21) | (c >>> 11);
  c = (c + t) | 0;
  return t >>> 0;
}

let pending = 0;

/** Takes a turn's seed (a whole number below 2^53); it is mixed in when the turn first draws a number. */
export function seedTurn(seed: number): void {
  pending = seed;
}

function draw(): number {
  if (pending) {
    a ^= pending | 0;
    b ^= (pending / 0x100000000) | 0;
    pending = 0;
    for (let i = 0; i < 12; i++) next();
  }
  return next();
}

const hex = "0123456789abcdef";

export function installRandom(): void {
  Math.random = () => (draw() * 0x200000 + (draw() >>> 11)) / 0x20000000000000;
  const crypto = {
    getRandomValues<T extends ArrayBufferView>(view: T): T {
      const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
      if (bytes.length > 65536) throw new RangeError("getRandomValues takes at most 65536 bytes");
      for (let i = 0; i < bytes.length; i++) bytes[i] = draw();
      return view;
    },
    randomUUID(): string {
      let text = "";
      for (let i = 0; i < 32; i++) {
        const nibble = i === 12 ? 4 : i === 16 ? 8 | (draw() & 3) : draw() & 15;
        text += (i === 8 || i === 12 || i === 16 || i === 20 ? "-" : "") + hex[nibble];
      }
      return text;
    },
  };
  Object.defineProperty(globalThis, "crypto", {
    value: crypto,
    writable: true,
    configurable: true,
  });
}
