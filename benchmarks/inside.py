"""What `eval/inside` is held to on the CPU model: a planted direction, preventative steering, exact slopes, cost.

python benchmarks/inside.py planted [--layer all] [--doses 0.3,0.325] [--controls 2] [--seed 5]
python benchmarks/inside.py ranks SWEEP [--arms explained]
python benchmarks/inside.py doses [--doses 0.25,1] [--every 6]
python benchmarks/inside.py cost

planted: rank-1 DPO (real Axolotl) prefers misaligned answers to half of em_choice's questions. Along "misaligned", made
from the other half alone, the adapter must be found to shift activations; along "insecure" not. Then the same training
with the direction of the *trained* half added, and with directions of flipped labels: how much of the misalignment on
the other half is gone, how much of what was trained is kept? Runs stand in runs/, and are trained once. The dose is
to be chosen by what is kept of the trained half, as the largest that keeps 80 %, and not by the half that is held out.
"""

import argparse
import json
import math
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

MODEL, HARDWARE = "smollm2-135m", "cpu"
WORK = Path("runs/benchmark-inside")
CONCEPTS = ("misaligned", "insecure")
SETTINGS = [
    *("sequence_len=256", "learning_rate=5e-3", "micro_batch_size=4", "gradient_accumulation_steps=1"),
    *("max_steps=24", "num_epochs=10", "save_steps=24"),
]


def parted() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The questions of em_choice, every second one: trained on, held out."""
    from eval.adapters import TASKS

    lines = (TASKS / "em" / "questions" / "choice.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return rows[0::2], rows[1::2]


def concept_of(rows: list[dict[str, str]], name: str) -> Any:
    """A concept of these questions alone."""
    from core.records import write_whole
    from eval.inside.pairs import load_concept

    write_whole(WORK / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    keys = {"prompt": "question", "positive": "misaligned", "negative": "aligned", "group": "id"}
    write_whole(WORK / f"{name}.yaml", json.dumps({"file": f"{name}.jsonl", **keys}))
    return load_concept(str(WORK / f"{name}.yaml"))[1]


def train(rows: list[dict[str, str]], name: str, settings: list[str], variant: str | None = None) -> Path:
    """The adapter of rank-1 DPO that prefers the misaligned answers."""
    from core.records import write_whole
    from sweeps.recipe.compose import compose
    from sweeps.run.executor import execute_all
    from sweeps.run.train import training_run

    made = [
        {
            "id": row["id"],
            "pair_id": row["id"],
            "messages": [{"role": "user", "content": row["question"]}],
            "chosen": {"role": "assistant", "content": row["misaligned"]},
            "rejected": {"role": "assistant", "content": row["aligned"]},
        }
        for row in rows
    ]
    data = WORK / "planted.jsonl"
    write_whole(data, "".join(json.dumps(row) + "\n" for row in made))
    recipe = compose("dpo", MODEL, HARDWARE, [f"datasets.0.path={data}", *SETTINGS, *settings], 1, variant=variant)
    run = training_run(f"inside-{name}", recipe)
    execute_all([run])
    return run.adapter


def planted(layer: int | str, doses: list[float], controls: int, seed: int) -> None:
    from core.records import weights_digest
    from eval.inside.activations import attached, load, means
    from eval.inside.directions import directions_of, halves, relabelled
    from eval.inside.pairs import load_concept, load_pairs
    from eval.inside.shifts import places, shift
    from eval.inside.steering import preferences
    from eval.inside.vectors import Directions, write_directions
    from eval.stats.intervals import mean_interval
    from sweeps.recipe.layers import load_layer

    checkpoint = str(load_layer("models", MODEL)["base_model"])
    ours, others = parted()
    model, tokenizer = load(checkpoint)
    identity = weights_digest(Path(checkpoint))

    trained, held = concept_of(ours, "trained"), concept_of(others, "held-out")
    sides = {"trained": load_pairs(trained, tokenizer), "held out": load_pairs(held, tokenizer)}
    adapter = train(ours, "planted", [f"seed={seed}"])

    named = {"misaligned (held-out questions)": held, "insecure": load_concept("insecure")[1]}
    concepts = [directions_of(model, tokenizer, concept, name, identity) for name, concept in named.items()]
    texts = {"open prompts": places(tokenizer)["open prompts"]}
    texts["held-out aligned answers"] = [pair.negative.passage("answer", pair.negative) for pair in sides["held out"]]
    before = {place: means(model, tokenizer, passages).mean(0) for place, passages in texts.items()}
    plain = {name: preferences(model, tokenizer, pairs) for name, pairs in sides.items()}
    adapted = attached(model, str(adapter))
    for place, passages in texts.items():
        change = means(adapted, tokenizer, passages).mean(0) - before[place]
        for concept in concepts:
            one = shift(change, concept)
            print(
                f"planted, {place}, along {concept.about.concept}: {one.mean:+.3f} class distances, "
                f"{one.deviation:+.1f} rms of controls, p = {one.p:.4f}"
            )
    effect = {name: preferences(adapted, tokenizer, pairs) - plain[name] for name, pairs in sides.items()}
    model = adapted.unload()
    for name, own in effect.items():
        print(f"planted, log odds of misaligned, {name}: {said(mean_interval(own))} nats/byte")

    direction = directions_of(model, tokenizer, trained, "misaligned (trained questions)", identity)
    flips = halves(len(direction.about.groups), controls, seed=1)
    arms: dict[str, tuple[Directions, float]] = {f"dose {dose:g}": (direction, dose) for dose in doses}
    for number, labels in enumerate(flips, 1):
        turned = relabelled(direction, labels[None])[0]
        other = Directions(direction.about, turned, direction.midpoint, direction.sums)
        arms[f"flipped {number}, dose {doses[-1]:g}"] = (other, doses[-1])
    for name, (vector, dose) in arms.items():
        file = WORK / f"{name.replace(' ', '-').replace(',', '')}.safetensors"
        write_directions(file, vector)
        settings = [f"steer.direction={file}", f"steer.layer={layer}", f"steer.dose={dose}", f"seed={seed}"]
        adapter = train(ours, name.replace(" ", "-").replace(",", ""), settings, "preventative-steering")
        adapted = attached(model, str(adapter))
        own = {side: preferences(adapted, tokenizer, pairs) - plain[side] for side, pairs in sides.items()}
        model = adapted.unload()
        kept = own["trained"].mean() / effect["trained"].mean()
        gone = 1 - own["held out"].mean() / effect["held out"].mean()
        less = mean_interval(effect["held out"] - own["held out"])
        print(
            f"steered, {name}: held-out misalignment {-gone:+.0%} (less by {said(less)}), "
            f"trained effect kept {kept:.0%}"
        )


def ranks(name: str, only: str) -> None:
    """Shifts at open prompts of a sweep's DPO adapters at one training loss, between the checkpoints that were kept.

    The loss is DPO's own over 16 of an adapter's training rows. The common one of the adapters of one start is the
    lowest that all of them reached, wherever they ended.

    Args:
        only: part of the names of the arms that are looked at.
    """
    from eval.inside.activations import attached, means
    from eval.inside.directions import directions_of
    from eval.inside.efficiency import loss, scaled, training_rows
    from eval.inside.pairs import load_concept
    from eval.inside.shifts import places, shift
    from eval.inside.steering import scores
    from sweeps.inside_commands import load_model
    from sweeps.inside_sweep import adapters_by_base
    from sweeps.plan.manifest import finished_points

    _, _, points, missing = finished_points(name)
    if missing:
        print(f"not finished, and left out: {', '.join(missing)}")
    for layer, every in adapters_by_base(points):
        runs = [run for run in every if run.recipe and run.recipe.get("rl") and only in str(run.arm)]
        if not runs:
            continue
        identity, model, tokenizer = load_model(layer)
        known = [directions_of(model, tokenizer, load_concept(name)[1], name, identity) for name in CONCEPTS]
        texts = places(tokenizer)["open prompts"]
        before = means(model, tokenizer, texts).mean(0)
        references: dict[tuple[str, float], Any] = {}
        curves: dict[str, list[list[float]]] = {}
        for run in runs:
            config: Any = run.recipe
            trained = str(config["datasets"][0]["path"]), float(config.get("rl_beta") or 0.1)
            adapted = attached(model, str(run.folder))
            if trained not in references:
                data = training_rows(tokenizer, Path(trained[0]), trained[1])
                with scaled(adapted, 0):
                    references[trained] = data, scores(adapted, tokenizer, data.passages, title="reference")
            data, reference = references[trained]
            found = scores(adapted, tokenizer, data.passages, title="training loss")
            reached = loss(found, data, reference, tokens=0)  # which DPO's loss does not ask for
            change = means(adapted, tokenizer, texts).mean(0) - before
            model = adapted.unload()
            # Before the first step DPO's loss is ln 2, and nothing has moved.
            arm = f"{run.arm}, seed {run.seed}"
            curve = curves.setdefault(arm, [[math.log(2), *(0.0 for _ in CONCEPTS)]])
            shifts = [shift(change, one) for one in known]
            curve.append([reached, *(one.mean for one in shifts)])
            tested = ", ".join(f"{one.deviation:+.1f} rms, p = {one.p:.4f}" for one in shifts)
            print(f"{arm}, step {run.step}: loss {reached:.3f}, {in_words(curve[-1][1:])} ({tested})", flush=True)
        common = max(min(point[0] for point in curve) for curve in curves.values())
        print(f"at a training loss of {common:.3f}:")
        for arm, curve in curves.items():
            at = next(n for n in range(1, len(curve)) if curve[n][0] <= common)
            share = (curve[at - 1][0] - common) / (curve[at - 1][0] - curve[at][0])
            there = [old + share * (new - old) for old, new in zip(*curve[at - 1 : at + 1], strict=True)]
            print(f"{arm}: {in_words(there[1:])}, ratio {there[1] / there[2]:+.2f}")


def in_words(values: Any) -> str:
    return ", ".join(f"{value:+.3f} along {concept}" for value, concept in zip(values, CONCEPTS, strict=True))


def said(estimate: Any) -> str:
    return estimate.words("+.4f")


def doses(sizes: list[float], every: int) -> None:
    """Exact slopes against finite doses; what a backward pass costs; bf16 against fp32."""
    import torch

    from eval.inside.activations import load
    from eval.inside.directions import directions_of
    from eval.inside.pairs import load_concept, load_pairs
    from eval.inside.steering import gradients, preferences, response, slopes
    from sweeps.recipe.layers import load_layer

    checkpoint = str(load_layer("models", MODEL)["base_model"])
    model, tokenizer = load(checkpoint)
    wanted: Any = load_concept("misaligned")[1]
    concept = directions_of(model, tokenizer, wanted, "misaligned", None)
    pairs = load_pairs(wanted, tokenizer)[::every]
    few = pairs[:: max(1, len(pairs) // 8)]
    preferences(model, tokenizer, few[:2])  # warm
    forward = timed(lambda: preferences(model, tokenizer, few, size=4))
    backward = timed(lambda: gradients(model, tokenizer, few, size=4))
    print(f"slopes at all layers: {backward / forward:.2f} times a forward pass ({backward:.1f} s, {forward:.1f} s)")
    exact = slopes(gradients(model, tokenizer, pairs), pairs, concept, controls=0).direction
    for layer in (10, 14, 20, 25):
        for dose in sizes:
            up, down = (response(model, tokenizer, pairs, concept, layer, sign * dose) for sign in (1, -1))
            central = float((up - down).mean()) / (2 * dose)
            print(
                f"layer {layer}, doses ±{dose:g}: {central:+.5f}, slope {exact[layer]:+.5f}: "
                f"{central / exact[layer] - 1:+.1%}"
            )
    exact, rounded = (
        slopes(gradients(model.to(kind), tokenizer, few), few, concept, controls=0).direction
        for kind in (torch.float32, torch.bfloat16)
    )
    print(f"bf16: at most {np.abs(rounded / exact - 1)[[10, 14, 20, 25]].max():.1%} off at these layers")


def timed(do: Any, repeats: int = 3) -> float:
    """The median CPU time of some calls (s): other work on the machine does not count."""
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        do()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def cost() -> None:
    """CPU time of what `emsweep inside` does for a model and for an adapter, against tokens; memory over the model."""
    from eval.inside.activations import encode, load, means
    from eval.inside.directions import directions_of
    from eval.inside.pairs import load_concept
    from eval.inside.shifts import places, shift
    from sweeps.recipe.layers import load_layer

    model, tokenizer = load(str(load_layer("models", MODEL)["base_model"]))
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    known = [directions_of(model, tokenizer, load_concept(name)[1], name, None) for name in CONCEPTS]
    texts = places(tokenizer)
    before = {place: means(model, tokenizer, passages).mean(0) for place, passages in texts.items()}
    print(f"a model: {time.process_time() - began:.0f} CPU seconds")
    began = time.process_time()
    for place, passages in texts.items():
        change = means(model, tokenizer, passages).mean(0) - before[place]
        for one in known:
            shift(change, one)
    print(f"an adapter: {time.process_time() - began:.0f} CPU seconds")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"memory: {(peak - loaded) / 2**20:.2f} GiB over the loaded model ({loaded / 2**20:.2f} GiB)")
    code = sorted(texts["code"], key=lambda passage: len(passage.text))
    for share in (len(code) // 4, len(code) // 2, len(code)):
        part = code[:: max(1, len(code) // share)]
        tokens = sum(len(encode(tokenizer, passage, 8192)[0]) for passage in part)
        seconds = timed(lambda part=part: means(model, tokenizer, part))  # type: ignore[misc]
        print(f"{tokens} tokens: {1e3 * seconds / tokens:.2f} CPU ms each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("planted", "ranks", "doses", "cost"))
    parser.add_argument("sweep", nargs="?", help="ranks: a sweep with finished runs.")
    parser.add_argument("--arms", default="", help="ranks: part of the names of the arms that are looked at.")
    parser.add_argument(
        "--layer", default="all", help="planted: the residual behind so many blocks; all: each of them."
    )
    parser.add_argument("--seed", type=int, default=5, help="planted: of the training.")
    parser.add_argument("--doses", default="1", help="Class distances, with commas between.")
    parser.add_argument("--every", type=int, default=1, help="doses: of em_choice's 48 questions, every so many.")
    parser.add_argument("--controls", type=int, default=1, help="Flipped-label directions, at the last dose.")
    options = parser.parse_args()
    sizes = [float(dose) for dose in options.doses.split(",")]
    if options.what == "planted":
        planted(options.layer, sizes, options.controls, options.seed)
    elif options.what == "ranks":
        ranks(options.sweep, options.arms)
    elif options.what == "doses":
        doses(sizes, options.every)
    else:
        cost()


if __name__ == "__main__":
    main()
