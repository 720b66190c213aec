"""The child of the engine ``xllamacpp``: llama.cpp's own C++ server, inside Python. Run, never imported."""

import os
import signal
import sys
import threading

import msgspec
import xllamacpp

from kawai_tools.runners.engines import PROMPTS, Wanted

_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
    "presence_penalty": "penalty_present",
    "frequency_penalty": "penalty_freq",
}


def main() -> int:
    """Serve what the environment names until a signal comes; kawai's end brings one."""
    wanted = msgspec.json.decode(os.environ["KAWAI_WANTED"], type=Wanted)
    params = xllamacpp.CommonParams()
    params.model.path = wanted.weights
    params.mmproj.path = wanted.projection or ""
    params.hostnames = [os.environ["KAWAI_SOCKET"]]
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    params.model_alias = {wanted.id}
    params.ui = False
    params.cache_ram_mib = PROMPTS
    params.n_parallel = wanted.parallel
    params.n_ctx = wanted.context_length * wanted.parallel
    params.embedding = wanted.endpoint in {"embeddings", "rerank"}
    if wanted.endpoint == "rerank":
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if wanted.batch is not None:
        params.n_batch = params.n_ubatch = wanted.batch
    if wanted.gpu_layers is not None:
        params.n_gpu_layers = wanted.gpu_layers
    if wanted.threads is not None:
        params.cpuparams.n_threads = wanted.threads
    for name, value in wanted.sampling.items():
        if name in _SAMPLING:
            kind = int if name == "top_k" else float
            setattr(params.sampling, _SAMPLING[name], kind(value))
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.wait(0.5):
        pass  # a signal's handler runs between two waits
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
