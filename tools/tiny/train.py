"""Train a small, genuine PLaMo 2 checkpoint from text files: `python -m tools.tiny.train`.

Invariant: the same texts, options and seed give the same run; a run that is interrupted goes on
from its last save with nothing lost but the steps since.
"""

import json
import math
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.reference import Plamo2Reference
from plamo_ref.text.tokenizer import Plamo2Tokenizer
from plamo_ref.weights.checkpoint import save
from tools.tiny.card import write_card
from tools.tiny.corpus import Batches, Split, encode_passages, split, unindented
from tools.tiny.run import RESUME_FILE, Recipe, Run, train
from tools.tiny.vocabulary import learn_rows


def tiny_config(vocab_size: int) -> Plamo2Config:
    """The shape of the embedded model: every kind of layer, 4 M parameters."""
    return Plamo2Config(
        hidden_size=192,
        num_hidden_layers=8,
        intermediate_size=384,
        num_attention_heads=6,
        num_key_value_heads=2,
        hidden_size_per_head=32,
        attention_window_size=64,
        full_attention_idx=(3,),
        mamba_num_heads=12,
        mamba_d_state=32,
        vocab_size=vocab_size,
        pad_token_id=3,
    )


def init_weights(model: Plamo2Reference, seed: int) -> None:
    """Normal matrices; decays and step sizes spread over useful time scales."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("A_log"):
                p.copy_(torch.empty_like(p).uniform_(1, 16, generator=g).log())
            elif name.endswith("dt_bias"):
                low, high = math.log(1e-3), math.log(1e-1)
                dt = torch.empty_like(p).uniform_(low, high, generator=g).exp()
                p.copy_(torch.log(torch.expm1(dt)))  # softplus(dt_bias) == dt
            elif name.endswith("conv1d.weight"):
                bound = p.shape[-1] ** -0.5
                p.uniform_(-bound, bound, generator=g)
            elif p.dim() == 2 and not name.endswith(("q_weight", "k_weight")):
                p.normal_(0, 0.02, generator=g)


def load_or_learn_tokenizer(
    out: Path, init: Path | None, data: Split, vocab_size: int
) -> Plamo2Tokenizer:
    """The tokenizer of `init`, or of an earlier run in `out`, else learned from the passages."""
    if init is not None:
        Plamo2Tokenizer.from_folder(init).save(out)
    elif not (out / "tokenizer.jsonl").exists():
        lines = [line for text in data.train for line in text.splitlines() if line]
        Plamo2Tokenizer(learn_rows(lines, vocab_size), add_bos=True).save(out)
    return Plamo2Tokenizer.from_folder(out)


def record_of(
    run: Run, training_tokens: int, data: Split, sources: str, init: Path | None
) -> dict[str, Any]:
    """What the model card says of a run; `before` is the record of the checkpoint it began with."""
    return {
        "recipe": asdict(run.recipe),
        "parameters": run.model.config.num_parameters,
        "training_tokens": training_tokens,
        "held_out_bytes": sum(len(t.encode()) for t in data.held_out),
        "losses": [round(x, 4) for x in run.losses[:: max(1, len(run.losses) // 400)]],
        "held_out_bits_per_byte": run.held_out,
        "seconds": round(run.seconds),
        "machine": f"{platform.machine()} CPU, threads: {torch.get_num_threads()}",
        "torch": torch.__version__,
        "sources": sources,
        "before": init and json.loads((init / "training.json").read_text(encoding="utf-8")),
    }


def new_model(init: Path | None, recipe: Recipe) -> Plamo2Reference:
    """A model with fresh weights, or with those of the checkpoint `init` in float32."""
    if init is not None:
        return Plamo2Reference.from_pretrained(init)
    model = Plamo2Reference(tiny_config(recipe.vocab_size))
    init_weights(model, recipe.seed)
    return model


@click.command(context_settings={"show_default": True})
@click.argument("texts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=Recipe.steps)
@click.option("--batch", default=Recipe.batch, help="Rows in a batch.")
@click.option("--length", default=Recipe.length, help="Tokens in a row.")
@click.option("--learning-rate", default=Recipe.learning_rate)
@click.option("--vocab-size", default=Recipe.vocab_size, help="Rows of the tokenizer.")
@click.option("--seed", default=Recipe.seed)
@click.option("--warmup", default=Recipe.warmup, help="Steps until the full learning rate.")
@click.option("--unindent", default=Recipe.unindent, help="Share of passages cut bare in front.")
@click.option(
    "--init",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Go on from this checkpoint (its weights, shape and tokenizer) instead of from nothing.",
)
@click.option("--every", default=200, help="Evaluate and save every so many steps.")
@click.option("--bfloat16/--float32", default=True, help="Matrix products while training.")
@click.option("--sources", default="", help="One line for the model card: what the texts are.")
def main(
    texts: tuple[str, ...],
    out: Path,
    init: Path | None,
    every: int,
    sources: str,
    **options: float,
) -> None:
    """Learn a tokenizer and train a small PLaMo 2 on the CPU from UTF-8 text files TEXTS.

    Run it again with the same options to go on after an interruption.
    """
    recipe = Recipe(**options)  # type: ignore[arg-type]
    out.mkdir(parents=True, exist_ok=True)
    try:
        whole = [Path(t).read_text(encoding="utf-8") for t in texts]
        data = split(whole, held_out_share=recipe.held_out_share, seed=recipe.seed)
    except (ValueError, OSError) as error:
        raise click.UsageError(f"the texts cannot be used: {error}") from None
    tokenizer = load_or_learn_tokenizer(out, init, data, recipe.vocab_size)
    model = new_model(init, recipe)
    config = model.config
    bos, ends = config.bos_token_id or 0, config.eos_token_id or 0
    eos = ends[0] if isinstance(ends, tuple) else ends
    encode = lambda text: tokenizer.encode(text, add_bos=False)  # noqa: E731
    shown = unindented(data.train, recipe.unindent, recipe.seed)
    encoded = encode_passages(shown, encode, bos, eos)
    held_out = encode_passages(data.held_out, encode, bos, eos)
    batches = Batches(encoded, rows=recipe.batch, length=recipe.length, seed=recipe.seed)
    run = Run(model, batches, recipe, out)
    if (out / RESUME_FILE).exists():
        run.resume()
    click.echo(
        f"{config.num_parameters:,} parameters; {sum(map(len, encoded)):,} training tokens; "
        f"{batches.steps_per_epoch} steps an epoch; from step {run.step} to {recipe.steps}"
    )
    train(run, data, held_out, every)
    save(out, config, dict(model.named_parameters()), dtype=torch.bfloat16)
    tokens = sum(map(len, encoded))
    (out / "training.json").write_text(
        json.dumps(record_of(run, tokens, data, sources, init), ensure_ascii=False, indent=1) + "\n"
    )
    write_card(out)
    click.echo(f"held-out: {run.held_out[-1][1]} bits per byte; written to {out}")


if __name__ == "__main__":
    main()
