"""Images that a worker has loaded: compiled, and ready to be thawed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox import image as images

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandbox.engine import Engine, Module
    from sandbox.image import Handles


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image, compiled, with the engine it runs under and a pristine copy of its memory to take
    differences against.
    """

    code: Module
    module: Module
    handles: Handles
    memory: bytes


def load_image(
    engine: Engine, codes: Mapping[str, Module], image: bytes, *, memory_bytes_max: int
) -> LoadedImage:
    """Compiles an image.

    `codes` are engine modules by digest: under another than its own, a memory would mean something
    else.

    Raises `ValueError` for what is no image, or one of an engine that is not there.
    """
    handles = images.read_handles(image)
    code = codes.get(handles.engine)
    if code is None:
        raise ValueError("the image belongs to another engine")
    module = engine.compile(image)
    pristine = engine.thaw(module, code, memory_bytes_max=memory_bytes_max)
    memory = bytes(pristine.view())
    pristine.close()
    return LoadedImage(code, module, handles, memory)
