"""The same reading, preprocessing and graph behind FastAPI and LitServe: no store, no tokens, no metrics, no admission.

``python benchmarks/serving_rivals.py fastapi|litserve --package FOLDER --port PORT`` serves ``POST /predict``, a raw body.
"""

# No postponed annotations: both frameworks read those of the endpoints below at run time.
import argparse
import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import litserve
from fastapi import Body, FastAPI, Request

from models.imaging import read_image
from models.predictor import Predictor
from models.preprocess import preprocess


def work(folder: Path) -> Callable[[bytes], dict[str, Any]]:
    """Return the function that every contender runs on a body: decode, preprocess, one-thread graph."""
    predictor = Predictor.load(folder)
    spec = predictor.card.input

    def analyse(body: bytes) -> dict[str, Any]:
        tensor = preprocess(read_image(body, target=(spec.height, spec.width)), spec)
        raw = predictor.graph.run(tensor)
        return {"logits": raw.logits[0].tolist(), "loss_score": float(raw.loss_score[0])}

    return analyse


def serve_fastapi(folder: Path, port: int, threads: int) -> None:
    """Serve with one process: its event loop and a pool of threads."""
    import uvicorn

    app = FastAPI()
    analyse = work(folder)
    pool = ThreadPoolExecutor(threads)

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        body = await request.body()
        return await asyncio.get_running_loop().run_in_executor(pool, analyse, body)

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


class Api(litserve.LitAPI):  # type: ignore[misc]
    """The work as LitServe wants it; at module level, because its worker processes are spawned."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        self._analyse = work(self._folder)

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        """Take the body as it is."""
        return request

    def predict(self, body: bytes) -> dict[str, Any]:
        """Do the work."""
        return self._analyse(body)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Answer as JSON."""
        return output


def serve_litserve(folder: Path, port: int, threads: int) -> None:
    """Serve with a process for HTTP and one a worker, as LitServe does on CPUs; bodies travel between them."""
    server = litserve.LitServer(Api(folder), accelerator="cpu", workers_per_device=threads, max_payload_size=2**28)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False, access_log=False)


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=("fastapi", "litserve"))
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    serve = serve_fastapi if options.framework == "fastapi" else serve_litserve
    serve(options.package, options.port, options.threads)


if __name__ == "__main__":
    main()
