"""What fewer bytes cost a trained model: `python benchmarks/quantization_quality.py TEXT…`.

The texts are those that the embedded model was trained on, in the order of its training: its card
(plamo_ref/models/tiny/README.md) names them. Split as then, a fiftieth of their passages was never
trained on. Each scheme reads these: bits for a byte of text, the divergence of its distribution of
the next token from the unquantized model's, and how often both find the same token likeliest.
Then what stays in bfloat16 is rounded as well, one kind of weight at a time: that says whether it
should. Of these the activations stay as they are; the head is a tensor beside the embedding then,
whose tokens are still looked up as they were.
Computed in float32 on the CPU, by the twins.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from plamo_ref import LLM
from plamo_ref.bench.report import report, write
from plamo_ref.model import Mamba
from plamo_ref.quantization.quantize import dequantize, quantize
from plamo_ref.quantization.schemes import SCHEMES
from tools.tiny.corpus import encode_passages, split
from tools.tiny.run import Recipe

MORE = ("bcdt", "dt", "head")
ENGINE = {"device": "cpu", "dtype": "float32", "max_num_batched_tokens": 4096}


def rounded(weight: Tensor, scheme: str) -> Tensor:
    """What is left of a weight that is stored so."""
    return dequantize(quantize(weight, SCHEMES[scheme]), weight.dtype)


@torch.inference_mode()
def read(
    scheme: str | None, passages: list[list[int]], more: str = ""
) -> tuple[list[Tensor], Tensor, int]:
    """Hidden states of each passage but its last token, the head's weight, the weights' bytes.

    Args:
        more: what is rounded besides the products, one of MORE.
    """
    with LLM("tiny", quantization=scheme, **ENGINE) as llm:
        model, size = llm.core.runner.model, llm.model_config.weight_bytes(2)
        head = model.lm_head.weight
        assert isinstance(head, Tensor)
        head = head.clone()
        mixers = [layer.mixer for layer in model.layers if isinstance(layer.mixer, Mamba)]
        also = {
            "bcdt": [mixer.bcdt_proj.weight for mixer in mixers],
            "dt": [mixer.selection.dt_weight for mixer in mixers],
            "head": [head],
        }
        for weight in also.get(more, ()):
            assert isinstance(weight, Tensor)
            assert scheme is not None
            size += quantize(weight, SCHEMES[scheme]).nbytes
            size -= 2 * weight.numel() if weight is not head else 0
            weight.copy_(rounded(weight, scheme))
        return llm.hidden_states([ids[:-1] for ids in passages]), head, size


def compare(
    exact: list[Tensor],
    found: list[Tensor],
    head: Tensor,
    own_head: Tensor,
    passages: list[list[int]],
) -> tuple[float, float, float]:
    """Nats of all passages together, mean divergence of a token in nats, share of agreement."""
    nats, divergence, same, tokens = 0.0, 0.0, 0, 0
    for truth, got, ids in zip(exact, found, passages, strict=True):
        p = (truth @ head.T).double().log_softmax(-1)
        q = (got @ own_head.T).double().log_softmax(-1)
        nats -= float(q.gather(1, torch.tensor(ids[1:])[:, None]).sum())
        divergence += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += len(ids) - 1
    return nats, divergence / tokens, same / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe = Recipe()
    texts = [path.read_text(encoding="utf-8") for path in options.texts]
    held_out = split(texts, held_out_share=recipe.held_out_share, seed=recipe.seed).held_out
    size = sum(len(text.encode()) for text in held_out)
    llm = LLM("tiny", **ENGINE)
    config, encode = llm.model_config, llm.tokenizer.encode
    llm.close()
    assert config.bos_token_id is not None
    assert isinstance(config.eos_token_id, int)
    passages = encode_passages(held_out, encode, config.bos_token_id, config.eos_token_id)
    rows = []
    exact, head, _ = read(None, passages)
    ways = [(None, ""), *((scheme, "") for scheme in SCHEMES)]
    ways += [(scheme, more) for scheme in ("fp8", "int4") for more in MORE]
    for scheme, more in ways:
        found, own_head, weights = exact, head, config.weight_bytes(2)
        if scheme:
            found, own_head, weights = read(scheme, passages, more)
        nats, divergence, agreement = compare(exact, found, head, own_head, passages)
        bits = nats / math.log(2) / size
        base = rows[0]["bits_per_byte"] if rows else bits
        rows.append(
            {
                "scheme": (scheme or "bfloat16") + (f", {more} too" if more else ""),
                "held_out_bytes": size,
                "tokens": sum(len(ids) - 1 for ids in passages),
                "weight_bytes": weights,
                "bits_per_byte": round(bits, 5),
                "more_bits": round(bits / base - 1, 5),
                "kl_nats": round(divergence, 6),
                "same_token_on_top": round(agreement, 5),
            }
        )
        print(rows[-1], flush=True)
        if options.json:
            write(report("quantization_quality", rows), options.json)


if __name__ == "__main__":
    main()
