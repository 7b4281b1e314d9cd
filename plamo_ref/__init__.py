"""plamo_ref: how a modern engine for a hybrid language model works, small enough to read."""

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.llm import LLM
from plamo_ref.engine.outputs import CompletionOutput, RequestOutput, StreamPiece
from plamo_ref.errors import PlamoRefError
from plamo_ref.sampling import SamplingParams
from plamo_ref.tokenizer import Plamo2Tokenizer

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CompletionOutput",
    "EngineConfig",
    "Plamo2Config",
    "Plamo2Tokenizer",
    "PlamoRefError",
    "RequestOutput",
    "SamplingParams",
    "StreamPiece",
]
