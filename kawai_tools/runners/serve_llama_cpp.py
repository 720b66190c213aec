"""The child of the engine ``llama-cpp-python``: its own OpenAI-style server. Run, never imported."""

import contextlib
import json
import os
import sys

import msgspec
import uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kawai_tools.runners.engines import Wanted


def main() -> int:
    """Serve what the environment names until a signal comes; kawai's end brings one."""
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
    # else a second request would end the stream of the first as if it were whole
    server = ServerSettings(api_key=os.environ["LLAMA_API_KEY"], interrupt_requests=False)
    app = create_app(server_settings=server, model_settings=[model])
    app.add_api_route("/health", _health)
    app.add_middleware(_Defaults, {"max_tokens": wanted.context_length}, wanted.sampling)
    serving = uvicorn.Server(uvicorn.Config(app, uds=os.environ["KAWAI_SOCKET"], log_level="warning"))
    serving.run()
    return 0


class _Defaults:
    """ASGI middleware that adds to a request what it does not say; this server has no options for it."""

    def __init__(self, app: ASGIApp, length: dict[str, int], sampling: dict[str, float]) -> None:
        self._app, self._sampling = app, sampling
        self._length = length  # it would end a completion after 16 tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/completions"):
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        with contextlib.suppress(ValueError):
            body = json.dumps({**self._length, **self._sampling, **json.loads(body)}).encode()
        given = [{"type": "http.request", "body": body, "more_body": False}]
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}

        async def replay() -> Message:
            return given.pop() if given else await receive()

        await self._app(scope, replay, send)


def _health() -> dict[str, str]:
    return {"status": "ok"}


if __name__ == "__main__":
    sys.exit(main())
