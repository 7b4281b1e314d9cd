"""Keywords that people coming from vLLM have in their files, and what becomes of them here.

Invariant: no keyword is dropped without a word. One that changes nothing here is accepted with one
line of notice, one that has an equivalent is translated with the same notice, and everything else
is refused by a message that names what there is instead. Only facts about names are from vLLM.
"""

import difflib
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.values import plain, shown

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger(__name__)


Others = Mapping[str, Any]  # the other arguments of the call, by name


@dataclass(frozen=True)
class Rule:
    """What becomes of one keyword. None always means that nothing is asked for."""

    cure: str  # what there is instead, or why the keyword changes nothing
    accepts: Callable[[Any, Others], bool] = lambda value, others: False  # changes nothing here
    becomes: Callable[[Any], Others] | None = None  # what to ask for in its place
    neutral: tuple[Any, ...] = ()  # the values that change nothing, if they can be listed

    @property
    def is_harmless(self) -> bool:
        """Whether every value changes nothing."""
        return self.accepts is _any


def _any(value: Any, others: Others) -> bool:
    return True


def ignored(why: str) -> Rule:
    return Rule(why, _any)


def only(*values: Any, cure: str) -> Rule:
    """Accepted with these values (1 is not True), refused with others."""
    same = [(type(value), value) for value in values]
    return Rule(cure, lambda value, others: (type(value), value) in same, neutral=values)


def missing(cure: str) -> Rule:
    return only([], {}, (), cure=cure)


def _renamed(name: str) -> Rule:
    return Rule(f"it is {name} here", becomes=lambda value: {name: value})


# --- settings of an engine -----------------------------------------------------------------------

_NO_LORA = "adapters are not supported: merge them into the checkpoint"
_TEXT_ONLY = "this engine is for text only"
_NO_SPECULATION = 'speculative_config={"method": "ngram"} drafts from the text, no model does'
_NO_SCALES = 'kv_cache_dtype="fp8" keeps keys and values without a scale'
_NOT_SHARED = "tokens themselves are compared: enable_prefix_caching is the setting"
_OWN = "the tokenizer is the checkpoint's own, whose files are in its folder"


def _eager(value: Any) -> Others:
    return {"cuda_graphs": not value if isinstance(value, bool) else value}


ENGINE: Mapping[str, Rule] = {
    "trust_remote_code": ignored("no code of a checkpoint is ever run"),
    "enforce_eager": Rule("it is cuda_graphs=False here", becomes=_eager),
    "kv_cache_memory_bytes": _renamed("memory_bytes"),
    "mamba_ssm_cache_dtype": _renamed("state_dtype"),
    "async_scheduling": _renamed("overlap"),
    "enable_expert_parallel": only(False, cure="the model has no experts"),
    "distributed_executor_backend": only("mp", "uni", cure="ranks are processes of one machine"),
    "calculate_kv_scales": only(False, cure=_NO_SCALES),
    "tokenizer": missing(_OWN),
    "tokenizer_mode": only("auto", "slow", "hf", cure="there is one tokenizer: leave it out"),
    "tokenizer_revision": missing("the tokenizer comes with the model: revision is for both"),
    "skip_tokenizer_init": only(
        False, cure="leave it out: a folder without a tokenizer serves token ids"
    ),
    "prefix_caching_hash_algo": ignored(_NOT_SHARED),
    "enable_chunked_prefill": only(
        True, cure='scheduler="v0" without chunk_size computes a prompt in one step'
    ),
    "swap_space": ignored("a preempted request is computed again"),
    "cpu_offload_gb": only(0, 0.0, cure="weights are not offloaded; dtype makes them smaller"),
    "num_gpu_blocks_override": missing("memory_bytes bounds the cache"),
    "max_seq_len_to_capture": ignored("graph_tokens is for steps with prompts"),
    "compilation_config": missing('compile="attention" or "all", compile_sizes and cuda_graphs'),
    "attention_backend": missing('kernels="torch", "triton" or "cache"'),
    "scheduling_policy": only("fcfs", cure="first come, first served"),
    "preemption_mode": only("recompute", cure="a preempted request is computed again"),
    "disable_log_stats": ignored("an engine logs no statistics; record=True keeps every step"),
    "disable_log_requests": ignored("requests are not logged"),
    "enable_log_requests": only(False, cure="requests are not logged; record=True keeps steps"),
    "disable_async_output_proc": ignored("overlap is the setting for that"),
    "use_v2_block_manager": ignored("there is one block manager"),
    "max_logprobs": ignored("every token may have 100 alternatives"),
    "served_model_name": ignored("it is an option of the server"),
    "download_dir": missing("cache_dir says where files of the hub go"),
    "hf_token": missing("the environment's HF_TOKEN says who asks the hub"),
    "hf_overrides": missing("edit config.json in a copy of the folder"),
    "config_format": only("auto", "hf", cure="config.json is the only form"),
    "model_impl": only("auto", "vllm", cure="there is one implementation"),
    "task": only("auto", "generate", cure="this engine generates"),
    "runner": only("auto", "generate", cure="this engine generates"),
    "convert": only("auto", "none", cure="this engine generates"),
    "enable_lora": only(False, cure=_NO_LORA),
    "speculative_model": missing(_NO_SPECULATION),
    "num_speculative_tokens": missing(_NO_SPECULATION),
    "limit_mm_per_prompt": missing(_TEXT_ONLY),
    "mm_processor_kwargs": missing(_TEXT_ONLY),
    "guided_decoding_backend": only("auto", "guidance", cure="grammars are llguidance's"),
    "structured_outputs_config": missing("grammars are llguidance's, without settings"),
    "enable_sleep_mode": only(False, cure="delete the LLM and make another"),
}

# What loads a model takes these besides: they are about the model.
MODEL: Mapping[str, Rule] = {
    **ENGINE,
    "tokenizer": Rule(_OWN, lambda value, others: str(value) == str(others.get("model", "tiny"))),
}

# --- parameters of a generation ------------------------------------------------------------------

_NO_BEAMS = "there is no beam search: n completions with a seed are the nearest thing"
_BIAS = "logit_bias favours and forbids tokens, guided follows a grammar"


def _grammar(value: Any) -> Others:
    """vLLM's ways to ask for a grammar: a mapping, or an object with such attributes."""
    # Imported here: SamplingParams, beside it, is made with this module.
    from plamo_ref.grammar.guided import GuidedError, GuidedParams

    if isinstance(value, GuidedParams):
        return {"guided": value}
    fields = value if isinstance(value, Mapping) else getattr(value, "__dict__", {"": value})
    asked = {name: what for name, what in fields.items() if not (what is None or what is False)}
    try:
        return {"guided": GuidedParams(**asked)}
    except TypeError:
        kinds = "json, json_object, regex, choice, grammar"
        message = f"structured_outputs must have one of {kinds}, not {shown(value)}"
        raise GuidedError(message) from None


SAMPLING: Mapping[str, Rule] = {
    "structured_outputs": Rule("it is guided here", becomes=_grammar),
    "guided_decoding": Rule("it is guided here", becomes=_grammar),
    "detokenize": ignored("text is always made; the ids are in token_ids"),
    "output_kind": ignored("generate gives the whole, stream the pieces"),
    "spaces_between_special_tokens": ignored("this tokenizer puts no spaces between tokens"),
    "allowed_token_ids": missing("logit_bias favours and forbids tokens, guided follows a grammar"),
    "bad_words": missing("logit_bias={id: -100} forbids a token, guided a text"),
    "best_of": only(1, cure="there is no best_of: ask for n, with logprobs, and choose"),
    "use_beam_search": only(False, cure=_NO_BEAMS),
    "beam_width": missing(_NO_BEAMS),
    "length_penalty": only(1, 1.0, cure=_NO_BEAMS),
    "early_stopping": only(False, cure=_NO_BEAMS),
    "truncate_prompt_tokens": missing("give the prompt's last ids yourself"),
    "logprob_token_ids": missing("logprobs reports up to 100 alternatives"),
    "prompt_logprob_token_ids": missing("prompt_logprobs reports up to 100 alternatives"),
    "prompt_logprob_start": missing("prompt_logprobs is for the whole prompt"),
    "flat_logprobs": only(False, cure="logprobs come as a list of one for each token"),
    "stream_interval": only(1, cure="every token is a piece"),
    "skip_reading_prefix_cache": only(False, cure="give the request a cache_salt of its own"),
    "skip_clone": ignored("parameters are never changed"),
    "extra_args": missing("there are no plugins"),
    "thinking_token_budget": missing("max_tokens bounds the whole output"),
    "repetition_detection": missing("repetition_penalty and frequency_penalty work against it"),
}

# --- arguments of a call -------------------------------------------------------------------------

CALL: Mapping[str, Rule] = {
    "prompt_token_ids": missing('a list of ids is a prompt, and so is {"prompt_token_ids": ids}'),
    "lora_request": missing(_NO_LORA),
    "prompt_adapter_request": missing(_NO_LORA),
    "priority": missing("first come, first served"),
    "guided_options_request": missing("SamplingParams has guided"),
    "tokenization_kwargs": missing("give ids instead of a text: llm.tokenizer.encode"),
}


# --- how a function takes them -------------------------------------------------------------------


def translate(
    title: str,
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    rules: Mapping[str, Rule],
    error: type[PlamoRefError],
) -> tuple[dict[str, Any], str]:
    """What to add to the arguments that we have (`own`) for those that we do not (`given`).

    Returns also one line of notice, or "".

    Raises:
        PlamoRefError: of class `error`; something cannot be had, and the message says what can.
    """
    added: dict[str, Any] = {}
    notes = []
    for name, value in given.items():
        rule, value = rules[name], plain(value)
        what = f"{name}={shown(value)}"
        if value is None or rule.accepts(value, own):
            why = f" ({rule.cure})" if rule.is_harmless else ""
            notes.append(f"{what} changes nothing{why}")
        elif rule.becomes is None:
            raise error(f"{title} cannot have {what}: {rule.cure}")
        else:
            for mine, asked in rule.becomes(value).items():
                if own.get(mine, asked) is not asked:
                    raise error(f"{title}: {name} is {mine} here; give one of the two")
                added[mine] = asked
                notes.append(f"{what} is taken as {mine}={shown(asked)}")
    return added, f"{title}: {'; '.join(notes)}" if notes else ""


def speaks_vllm(
    rules: Mapping[str, Rule], error: type[PlamoRefError]
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function take vLLM's keywords too; what it cannot take is an `error` with a name.

    A function with `**others` gets those that the rules do not know.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        title = function.__qualname__.removesuffix(".__init__")
        names = [name for name in signature.parameters if name != "self"]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())

        def unknown(name: str) -> PlamoRefError:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names)}"
            return error(f"{title} has no {name}: {hint}")

        @functools.wraps(function)
        def taking(*args: P.args, **given: P.kwargs) -> T:
            others = {name: value for name, value in given.items() if name in rules}
            mine: dict[str, Any] = {n: v for n, v in given.items() if n not in rules}
            for name in () if open_ended else mine.keys() - names:
                raise unknown(name)
            try:
                own = signature.bind_partial(*args, **mine).arguments | mine
                added, notice = translate(title, others, own, rules, error)
                signature.bind(*args, **mine, **added)
            except TypeError as wrong:
                raise error(f"{title}: {wrong}; give arguments by name") from None
            if notice:
                logger.warning(notice)
            return function(*args, **(mine | added))

        return taking

    return decorate
