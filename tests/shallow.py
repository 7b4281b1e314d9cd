"""A model for the tests of what is around a model: every second layer of the embedded one.

Invariant tested: none here. It has layers of each kind, and the embedded model's vocabulary and
tokenizer. A token of it costs half, and no test of a server looks at which token it is.
"""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from plamo_ref.intake.hub import find

# Mamba, full attention, Mamba, sliding attention: of all such four they still speak best.
LAYERS = (0, 3, 4, 5)
WEIGHTS = "model.safetensors"


def shallow(folder: Path) -> str:
    """The path of such a model, a folder inside `folder`: made unless it is there."""
    made, whole = folder / "shallow", find("tiny")
    if made.exists():
        return str(made)
    shutil.copytree(whole, made, ignore=shutil.ignore_patterns("*.png", "*.md", WEIGHTS))
    config = json.loads((whole / "config.json").read_text())
    config |= {"num_hidden_layers": len(LAYERS), "full_attention_idx": [LAYERS.index(3)]}
    (made / "config.json").write_text(json.dumps(config))
    weights = {}
    for name, weight in load_file(whole / WEIGHTS).items():
        parts = name.split(".")  # model.layers.layers.3.mixer.…, or nothing of a layer
        if parts[1] == "layers":
            if int(parts[3]) not in LAYERS:
                continue
            parts[3] = str(LAYERS.index(int(parts[3])))
        weights[".".join(parts)] = weight
    save_file(weights, made / WEIGHTS, metadata={"format": "pt"})
    return str(made)
