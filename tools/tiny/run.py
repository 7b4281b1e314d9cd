"""A training run: its recipe, its steps, and how it survives a stop.

Invariant: step t does the same whenever it is reached, so a run that is interrupted goes on from
its last save with nothing lost but the steps since.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from plamo_ref.reference import Plamo2Reference
from tools.tiny.corpus import Batches, Split

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
