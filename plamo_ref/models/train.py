"""Train a small, genuine PLaMo 2 checkpoint from text files: `python -m plamo_ref.models.train`.

Invariant: the same texts, options and seed give the same run; a run that is interrupted goes on
from its last save with nothing lost but the steps since.
"""

import json
import math
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from plamo_ref.checkpoint import save
from plamo_ref.config import Plamo2Config
from plamo_ref.models.card import write_card
from plamo_ref.models.corpus import Batches, Split, encode_passages, split, unindented
from plamo_ref.models.vocabulary import learn_rows
from plamo_ref.reference import Plamo2Reference
from plamo_ref.tokenizer import Plamo2Tokenizer

RESUME_FILE = "training_state.safetensors"  # weights in float32 and both Adam moments


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run besides the texts."""

    steps: int = 2500
    batch: int = 16
    length: int = 256
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 20261123
    held_out_share: float = 0.02
    vocab_size: int = 5120
    unindent: float = 0.5  # share of passages that lose the white space they open with
    bfloat16: bool = True  # matrix products in bf16 while training; weights stay float32

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to a tenth."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


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


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for n, p in model.named_parameters() if n.endswith("proj.weight")]
    others = [p for n, p in model.named_parameters() if not n.endswith("proj.weight")]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


@torch.no_grad()
def bits_per_byte(model: nn.Module, encoded: list[list[int]], texts: list[str]) -> float:
    """Held-out loss in bits per UTF-8 byte, comparable between vocabularies."""
    nats = 0.0
    for ids in encoded:
        row = torch.tensor(ids)
        nats += F.cross_entropy(model(row[:-1]).float(), row[1:], reduction="sum").item()
    return nats / math.log(2) / sum(len(t.encode()) for t in texts)


class Run:
    """A training run and its folder."""

    def __init__(self, model: Plamo2Reference, batches: Batches, recipe: Recipe, out: Path):
        self.model, self.batches, self.recipe, self.out = model, batches, recipe, out
        self.optimizer = optimizer_for(model, recipe)
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []  # nats per token, one per step
        self.held_out: list[tuple[int, float]] = []  # (step, bits per byte)

    def train_step(self) -> float:
        """One batch forward, backward and one update. Returns the loss in nats per token."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        inputs, targets = self.batches[self.step]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.bfloat16):
            logits = self.model(inputs)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def save(self) -> None:
        """Write what `resume` needs; the file is replaced in one move."""
        tensors: dict[str, Tensor] = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        tensors["held_out"] = torch.tensor(self.held_out, dtype=torch.float64)
        tensors["seconds"] = torch.tensor([self.seconds], dtype=torch.float64)
        for name, p in self.model.named_parameters():
            moments = self.optimizer.state[p]
            tensors[f"weight/{name}"] = p.detach()
            tensors[f"first/{name}"] = moments["exp_avg"]
            tensors[f"second/{name}"] = moments["exp_avg_sq"]
        target = self.out / RESUME_FILE
        partial = target.with_suffix(".partial")
        save_file({k: t.contiguous() for k, t in tensors.items()}, partial)
        partial.replace(target)

    def resume(self) -> None:
        """Go on where `save` stopped."""
        saved = load_file(self.out / RESUME_FILE)
        self.losses = saved["losses"].tolist()
        self.held_out = [(int(step), bpb) for step, bpb in saved["held_out"].tolist()]
        self.step, self.seconds = len(self.losses), saved["seconds"].item()
        for name, p in self.model.named_parameters():
            p.data.copy_(saved[f"weight/{name}"])
            self.optimizer.state[p] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": saved[f"first/{name}"],
                "exp_avg_sq": saved[f"second/{name}"],
            }


def train(run: Run, data: Split, held_out: list[list[int]], every: int) -> None:
    """Train to the recipe's last step, evaluating and saving every `every` steps."""
    bar = tqdm(total=run.recipe.steps, initial=run.step, unit="step")
    started, before = time.perf_counter(), run.seconds
    while run.step < run.recipe.steps:
        loss = run.train_step()
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", held_out=run.held_out[-1][1] if run.held_out else "")
        if run.step % every == 0 or run.step == run.recipe.steps:
            bpb = bits_per_byte(run.model, held_out, data.held_out)
            run.held_out.append((run.step, round(bpb, 4)))
            run.seconds = before + time.perf_counter() - started
            run.save()
    bar.close()


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
    bos, eos = config.bos_token_id or 0, config.eos_token_id or 0
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
