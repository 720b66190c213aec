"""Asks a true build of llama.cpp which tensors it wants of models that are given as metadata alone.

Run as a program: the directory of the build, then GGUF files without tensors. For each it writes one line
of JSON: the file, and names and dimensions as the loader asks for them (None: it refuses), through
``llama_model_init_from_user`` of ``llama.h``. A child, since llama.cpp ends its process where it asserts.
"""

import ctypes
import json
import sys
from pathlib import Path


class _Start(ctypes.Structure):
    """``gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


class _Parameters(ctypes.Structure):
    """``llama_model_params``, which is passed on as it comes: larger than it is, and opaque."""

    _fields_ = (("words", ctypes.c_uint64 * 16),)


class _Tensor(ctypes.Structure):
    """``ggml_tensor`` of ``ggml.h``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("dimensions", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("sources", ctypes.c_void_p * 10),
        ("view", ctypes.c_void_p),
        ("view_offset", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


_Filled = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Tensor), ctypes.c_void_p)
_Said = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def main(build: Path, files: list[str]) -> None:
    base = ctypes.CDLL(str(build / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    llama = ctypes.CDLL(str(build / "libllama.so"))
    base.gguf_init_from_file.argtypes = [ctypes.c_char_p, _Start]
    base.gguf_init_from_file.restype = ctypes.c_void_p
    llama.llama_model_default_params.restype = _Parameters
    llama.llama_model_init_from_user.argtypes = [ctypes.c_void_p, _Filled, ctypes.c_void_p, _Parameters]
    llama.llama_model_init_from_user.restype = ctypes.c_void_p
    llama.llama_model_free.argtypes = [ctypes.c_void_p]
    silent = _Said(lambda *_: None)
    llama.llama_log_set(silent, None)
    llama.llama_backend_init()
    for file in files:
        found: dict[str, list[int]] = {}

        def note(tensor: "ctypes._Pointer[_Tensor]", _: object, found: dict[str, list[int]] = found) -> None:
            found[tensor.contents.name.decode()] = list(tensor.contents.dimensions)

        header = base.gguf_init_from_file(file.encode(), _Start(no_alloc=True))
        parameters = llama.llama_model_default_params()
        model = llama.llama_model_init_from_user(header, _Filled(note), None, parameters)
        print(json.dumps([file, found if model else None]), flush=True)  # noqa: T201 - its answer
        if model:
            llama.llama_model_free(model)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
