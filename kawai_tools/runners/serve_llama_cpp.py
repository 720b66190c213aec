"""The child of the engine ``llama-cpp-python``: its own OpenAI-style server. Run, never imported."""

import os
import sys
import threading
import time

import msgspec
import uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings

from kawai_tools.runners.engines import Wanted


def main() -> int:
    """Serve what the environment names until a signal comes, or the parent goes."""
    wanted = msgspec.json.decode(os.environ["KAWAI_WANTED"], type=Wanted)
    model = ModelSettings(
        model=wanted.weights,
        model_alias=wanted.id,
        n_ctx=wanted.context_length,
        n_gpu_layers=wanted.gpu_layers if wanted.gpu_layers is not None else 0,
        embedding=wanted.endpoint == "embeddings",
        verbose=False,
        **({"n_threads": wanted.threads} if wanted.threads is not None else {}),
        **({"n_batch": wanted.batch, "n_ubatch": wanted.batch} if wanted.batch is not None else {}),
    )
    server = ServerSettings(api_key=os.environ["LLAMA_API_KEY"])
    app = create_app(server_settings=server, model_settings=[model])

    app.add_api_route("/health", _health)
    serving = uvicorn.Server(uvicorn.Config(app, uds=os.environ["KAWAI_SOCKET"], log_level="warning"))
    threading.Thread(target=_watch, args=(serving, os.getppid()), daemon=True).start()
    serving.run()
    return 0


def _health() -> dict[str, str]:
    return {"status": "ok"}


def _watch(serving: uvicorn.Server, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    serving.should_exit = True


if __name__ == "__main__":
    sys.exit(main())
