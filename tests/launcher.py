"""The ``llama-server`` of bundles that tests make: xllamacpp's C++ server under llama.cpp's own flags.

Run from a bundle's directory by a first line that ``bundles.py`` puts before this text; never imported. Like
the true one it loads libraries from beside itself, reads flags from ``LLAMA_ARG_*``, and dies of SIGTERM
while the model is loading.
"""

import argparse
import ctypes
import os
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

SAMPLING = {
    "--temp": "temp",
    "--top-k": "top_k",
    "--top-p": "top_p",
    "--min-p": "min_p",
    "--repeat-penalty": "penalty_repeat",
    "--presence-penalty": "penalty_present",
    "--frequency-penalty": "penalty_freq",
}
LIBRARY = Path(__file__).resolve().with_name("libllama.so")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(f"error: {message.replace('unrecognized arguments', 'invalid argument')}")


def _options() -> argparse.Namespace:
    parser = _Parser(allow_abbrev=False, add_help=False)
    for flag in ("--version", "--list-devices", "--no-warmup", "--offline"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--no-webui", "--no-ui", action="store_true")
    parser.add_argument("--embeddings", "--embedding", action="store_true")
    parser.add_argument("--reranking", "--rerank", action="store_true")
    for flag in SAMPLING:
        parser.add_argument(flag, type=float)
    parser.add_argument("--api-key", default=os.environ.get("LLAMA_API_KEY"))
    valued: list[tuple[type[str | int], str, list[str]]] = [
        (str, "HOST", ["--host"]),
        (int, "PORT", ["--port"]),
        (str, "MODEL", ["-m", "--model"]),
        (str, "MMPROJ", ["-mm", "--mmproj"]),
        (str, "ALIAS", ["-a", "--alias"]),
        (int, "CTX_SIZE", ["-c", "--ctx-size"]),
        (int, "N_PARALLEL", ["-np", "--parallel"]),
        (int, "THREADS", ["-t", "--threads"]),
        (int, "BATCH", ["-b", "--batch-size"]),
        (int, "UBATCH", ["-ub", "--ubatch-size"]),
        (int, "N_GPU_LAYERS", ["-ngl", "--gpu-layers", "--n-gpu-layers"]),
    ]
    for kind, variable, flags in valued:
        default = os.environ.get(f"LLAMA_ARG_{variable}")
        parser.add_argument(*flags, type=kind, default=default, dest=variable.lower())
    return parser.parse_args()


def _list_devices(xllamacpp: Any) -> None:  # noqa: ANN401 -- untyped
    rows = [each for each in xllamacpp.get_device_info() if each["name"] != "CPU"]
    print("Available devices:" if rows else "Available devices:\n  (none)")  # noqa: T201
    for row in rows:
        total, free = row["memory_total"] >> 20, row["memory_free"] >> 20
        print(f"  {row['name']}: {row['description']} ({total} MiB, {free} MiB free)")  # noqa: T201


def _parameters(options: argparse.Namespace, xllamacpp: Any) -> Any:  # noqa: ANN401 -- untyped
    params = xllamacpp.CommonParams()
    params.model.path = options.model or ""
    params.mmproj.path = options.mmproj or ""
    params.hostnames = (options.host or "127.0.0.1").split(",")
    params.port = 8080 if options.port is None else options.port
    params.api_keys = options.api_key.split(",") if options.api_key else []
    params.model_alias = {options.alias} if options.alias else set()
    params.ui, params.warmup = not options.no_webui, not options.no_warmup
    params.embedding = options.embeddings or options.reranking
    if options.reranking:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    for flag, name in SAMPLING.items():
        value = getattr(options, flag[2:].replace("-", "_"))
        if value is not None:
            setattr(params.sampling, name, int(value) if name == "top_k" else value)
    params.n_ctx = options.ctx_size or 0
    if options.n_parallel is not None:
        params.n_parallel = options.n_parallel
    params.n_batch = options.batch or params.n_batch
    params.n_ubatch = options.ubatch or params.n_ubatch
    if options.n_gpu_layers is not None:
        params.n_gpu_layers = options.n_gpu_layers
    if options.threads is not None:
        params.cpuparams.n_threads = options.threads
    return params


def main() -> int:
    """Do as the flags say; return the exit status."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        sys.stderr.write(f"{sys.argv[0]}: error while loading shared libraries: {error}\n")
        return 127
    options = _options()
    if options.version:
        sys.stderr.write(f"version: {library.llama_build_number()} (abc)\nbuilt with cc for {sys.platform}\n")
        return 0
    xllamacpp = import_module("xllamacpp")
    if options.list_devices:
        _list_devices(xllamacpp)
        return 0
    library.llama_backend_init()
    try:
        server = xllamacpp.Server(_parameters(options, xllamacpp))
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    # a signal may arrive on a thread of the server's: the descriptor wakes this one all the same
    waiting, waking = socket.socketpair()
    waking.settimeout(0)
    signal.set_wakeup_fd(waking.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    waiting.recv(1)
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
