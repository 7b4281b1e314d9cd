"""Fields that other servers know and this one does not, or that change nothing.

Invariant: of each, what to do instead, and the values that need nothing done.
"""

from typing import Any

from plamo_ref.server.edge.known import Elsewhere, Table


def _no(advice: str, *neutral: Any) -> Elsewhere:
    return Elsewhere(advice, neutral)


_ANY = Elsewhere("it changes nothing", whatever=True)
_GRAMMAR = "give structured_outputs with json, regex, choice or grammar"
_SAMPLING = "the model is sampled with temperature, top_k, top_p and min_p"
_ALONE = Elsewhere("it means nothing without a field that is refused", whatever=True)
_REASONING = "the model's reasoning, if it has any, is part of its answer"

# OpenAI's: who asks, how it is billed and cached.
_NOTES: Table = dict.fromkeys(
    (
        "user",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "session_id",
        "cache_prompt",
    ),
    _ANY,
)

_VLLM: Table = {
    "allowed_token_ids": _no("give guided_choice, or a logit_bias of -100 for the others"),
    "bad_words": _no("a logit_bias of -100 forbids a token", []),
    "detokenize": _no("answers are texts; return_token_ids adds the ids", True),
    "ec_transfer_params": _no("there is one engine"),
    "guided_decoding_backend": _no("there is one", "auto"),
    "guided_whitespace_pattern": _no("JSON is compact"),
    "kv_transfer_params": _no("there is one engine"),
    "length_penalty": _no("it belongs to beam search, which there is not", 1),
    "logits_processors": _no("give logit_bias, or a grammar"),
    "logprob_token_ids": _no("give logprobs: the likeliest tokens are reported"),
    "media_io_kwargs": _no("the model reads text only", {}),
    "mm_processor_kwargs": _no("the model reads text only", {}),
    "priority": _no("who comes first is served first", 0),
    "prompt_embeds": _no("give the prompt as text or token ids"),
    "repetition_detection": _no("give a frequency_penalty or max_tokens"),
    "return_mm_kwargs": _no("the model reads text only", True),
    "return_prompt_text": _no("give return_token_ids, and ask /detokenize", False),
    "return_token_offsets": _no("logprobs of a completion have text_offset", False),
    "routed_experts_prompt_start": _no("the model has no experts", 0),
    "stream_interval": _no("every token is sent when it comes", 1),
    "thinking_token_budget": _no(_REASONING, -1),
    "truncate_prompt_tokens": _no("shorten the prompt; /tokenize counts its tokens"),
    "truncation_side": _no("prompts are not shortened"),
    "use_beam_search": _no("give n with a temperature", False),
    "vllm_xargs": _no("there are no extensions", {}),
    "watermarking": _no("texts have no watermark", False),
}

_LLAMA_CPP: Table = {
    "n_predict": _no("give max_tokens"),
    "n_cmpl": _no("give n", 1),
    "n_probs": _no("give logprobs", 0),
    "n_keep": _no("prompts are not shortened", 0),
    "n_discard": _no("prompts are not shortened", 0),
    "n_indent": _no("texts are not indented", 0),
    "grammar": _no(_GRAMMAR, ""),
    "grammar_lazy": _no(_GRAMMAR, False),
    "grammar_triggers": _no(_GRAMMAR, []),
    "json_schema": _no("give response_format, or " + _GRAMMAR.removeprefix("give ")),
    "typical_p": _no(_SAMPLING, 1),
    "top_n_sigma": _no(_SAMPLING, -1),
    "tfs_z": _no(_SAMPLING, 1),
    "mirostat": _no(_SAMPLING, 0),
    "mirostat_tau": _ALONE,
    "mirostat_eta": _ALONE,
    "dynatemp_range": _no("give temperature", 0),
    "dynatemp_exponent": _ALONE,
    "xtc_probability": _no(_SAMPLING, 0),
    "xtc_threshold": _ALONE,
    "dry_multiplier": _no("give repetition_penalty or frequency_penalty", 0),
    "dry_base": _ALONE,
    "dry_allowed_length": _ALONE,
    "dry_penalty_last_n": _ALONE,
    "dry_sequence_breakers": _ALONE,
    "repeat_penalty": _no("give repetition_penalty", 1),
    "repeat_last_n": _no("penalties look at the whole text", -1),
    "penalize_nl": _no("penalties look at every token", True),
    "min_keep": _no(_SAMPLING, 0, 1),
    "samplers": _no("their order is fixed: temperature, top_k, top_p, min_p"),
    "id_slot": _no("the scheduler finds a slot", -1),
    "lora": _no("there are no adapters", []),
    "image_data": _no("the model reads text only", []),
    "post_sampling_probs": _no("logprobs are those before truncation", False),
    "return_tokens": _no("give return_token_ids", False),
    "return_progress": _no("/metrics tells what is under way", False),
    "timings_per_token": _no("/metrics has the times", False),
    "t_max_predict_ms": _no("give max_tokens", 0, -1),
    "response_fields": _no("answers have all their fields", []),
    "reasoning_format": _no(_REASONING, "none", "auto"),
}

_SGLANG: Table = {
    "regex": _no(_GRAMMAR),
    "ebnf": _no(_GRAMMAR),
    "min_new_tokens": _no("give min_tokens", 0),
    "stop_regex": _no("give stop", []),
    "no_stop_trim": _no("give include_stop_str_in_output", False),
    "lora_path": _no("there are no adapters"),
    "custom_logit_processor": _no("give logit_bias, or a grammar"),
    "custom_params": _no("there are no extensions", {}),
    "session_params": _no("send the whole conversation each time", {}),
    "return_hidden_states": _no("answers have texts and token ids", False),
    "return_routed_experts": _no("the model has no experts", False),
    "separate_reasoning": _no(_REASONING, False),
    "stream_reasoning": _no(_REASONING, True),
    "rid": _no("give request_id, or the header X-Request-Id"),
}

_HUGGING_FACE: Table = {
    "max_new_tokens": _no("give max_tokens"),
    "min_length": _no("give min_tokens", 0),
    "do_sample": _no("temperature 0 takes the likeliest token", True),
    "num_beams": _no("give n with a temperature", 1),
    "early_stopping": _no("it belongs to beam search, which there is not", False),
    "no_repeat_ngram_size": _no("give repetition_penalty or frequency_penalty", 0),
    "encoder_repetition_penalty": _no("give repetition_penalty", 1),
    "top_a": _no(_SAMPLING, 0),
    "tfs": _no(_SAMPLING, 1),
    "typical": _no(_SAMPLING, 1),
    "epsilon_cutoff": _no(_SAMPLING, 0),
    "eta_cutoff": _no(_SAMPLING, 0),
    "penalty_alpha": _no(_SAMPLING, 0),
    "smoothing_factor": _no("give temperature", 0),
    "smoothing_curve": _ALONE,
    "temperature_last": _no("temperature comes before truncation", False),
    "guidance_scale": _no("there is one prompt", 1),
    "negative_prompt": _no("there is one prompt", ""),
    "truncate": _no("shorten the prompt; /tokenize counts its tokens"),
    "watermark": _no("texts have no watermark", False),
    "details": _no("give logprobs", False),
    "decoder_input_details": _no("give echo with logprobs", False),
    "return_full_text": _no("give echo", False),
    "stop_sequences": _no("give stop", []),
}

_BOTH: Table = {
    **_NOTES,
    **_VLLM,
    **_LLAMA_CPP,
    **_SGLANG,
    **_HUGGING_FACE,
    "format": _no("give response_format"),
    "options": _no("its fields belong to the request itself", {}),
    "keep_alive": _no("the model stays", -1),
}

COMPLETION: Table = {
    **_BOTH,
    "messages": _no("conversations go to /v1/chat/completions"),
    "suffix": _no("the model continues, it does not insert", ""),
    "top_logprobs": _no("give logprobs: 5, say", 0),
}

CHAT: Table = {
    **_BOTH,
    "best_of": _no("give n"),
    "prompt": _no("prompts go to /v1/completions"),
    "echo": _no("the messages are not repeated", False),
    "suffix": _no("the model answers, it does not insert", ""),
    "audio": _no("the model writes text only"),
    "modalities": _no("the model writes text only", ["text"]),
    "prediction": _no("the text is not predicted"),
    "verbosity": _no("say in a message how long the answer should be", "medium"),
    "moderation": _no("nothing is moderated"),
    "web_search_options": _no("the model does not search"),
    "include_reasoning": _no(_REASONING, True),
    "chat_template": _no("it would run in the server; give --chat-template to the server"),
    "chat_template_content_format": _no("the content of a message is one text", "auto", "string"),
    "functions": _no("give tools", []),
    "function_call": _no("give tool_choice", "none", "auto"),
}

MESSAGE: Table = {
    "annotations": _no("put them into the content", []),
    "audio": _no("the model reads text only"),
    "function_call": _no("give tool_calls"),
    "refusal": _no("put it into the content", ""),
    "prefix": _no("give continue_final_message", False),
}

_NOTHING_STORED = _no("this server stores nothing; send the whole conversation as input")

RESPONSE: Table = {
    **{name: entry for name, entry in CHAT.items() if name not in ("metadata", "store")},
    "messages": _no("give input"),
    "prompt": _NOTHING_STORED,
    "previous_response_id": _NOTHING_STORED,
    "conversation": _NOTHING_STORED,
    "background": _no("an answer is given at once", False),
    "stream_options": _no("a response always has its usage", {}, {"include_obfuscation": False}),
    "max_tool_calls": _no("the server calls no tools"),
    "reasoning": _no(_REASONING),
    "n": _no("a response has one answer", 1),
    "max_tokens": _no("give max_output_tokens"),
    "max_completion_tokens": _no("give max_output_tokens"),
    "response_format": _no("give text with a format"),
    "logprobs": _no("give top_logprobs"),
    "prompt_logprobs": _no("/v1/completions has them"),
    "return_token_ids": _no("/v1/chat/completions has them", False),
    "documents": _no("write them into a message", []),
    "reasoning_effort": _no(_REASONING, "none"),
}

TEXT: Table = {"verbosity": _no("say in a message how long the answer should be", "medium")}

ITEM: Table = {"id": _ANY, "status": _ANY}  # of an answer that is sent back

ITEM_PART: Table = {"annotations": _ANY, "logprobs": _ANY}

TOOL_CALL: Table = {"index": _ANY}  # of a stream whose chunks were put together

FUNCTION: Table = {"defer_loading": _no("all tools are shown", False)}

PART: Table = {"cache_control": _ANY}

PLAIN_FORMAT: Table = {"schema": _no("a schema goes with the type json_schema")}

JSON_SCHEMA: Table = {"description": _ANY}

STRUCTURED_OUTPUTS: Table = {
    "structural_tag": _no("give a grammar"),
    "whitespace_pattern": _no("JSON is compact"),
    "disable_any_whitespace": _no("JSON is compact", True, False),
    "disable_additional_properties": _no("say additionalProperties in the schema", False),
    "disable_fallback": _no("there is one grammar library", True, False),
}

STREAM_OPTIONS: Table = {"include_obfuscation": _no("chunks have no padding", False)}
