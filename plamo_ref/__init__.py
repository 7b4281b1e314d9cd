"""plamo_ref: how a modern engine for a hybrid language model works, small enough to read.

Invariant: importing it imports nothing heavy; a public name brings its module when it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plamo_ref.config import Plamo2Config
    from plamo_ref.engine.config import EngineConfig
    from plamo_ref.engine.llm import LLM
    from plamo_ref.engine.outputs import CompletionOutput, RequestOutput, StreamPiece
    from plamo_ref.errors import PlamoRefError
    from plamo_ref.remote.async_llm import AsyncLLM
    from plamo_ref.sampling import SamplingParams
    from plamo_ref.text.tokenizer import Plamo2Tokenizer

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "EngineConfig",
    "Plamo2Config",
    "Plamo2Tokenizer",
    "PlamoRefError",
    "RequestOutput",
    "SamplingParams",
    "StreamPiece",
]

_HOMES = {
    "LLM": "engine.llm",
    "AsyncLLM": "remote.async_llm",
    "CompletionOutput": "engine.outputs",
    "EngineConfig": "engine.config",
    "Plamo2Config": "config",
    "Plamo2Tokenizer": "text.tokenizer",
    "PlamoRefError": "errors",
    "RequestOutput": "engine.outputs",
    "SamplingParams": "sampling",
    "StreamPiece": "engine.outputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == __name__:
            raise
        message = f"{__name__}.{name} needs {error.name}: pip install 'plamo-ref[server]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
